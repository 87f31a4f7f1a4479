//! JSON without two readings: a member that is there twice is refused, wherever it is, as readers differ on which one
//! counts.

use serde::de::{DeserializeOwned, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use std::collections::BTreeSet;
use std::fmt;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Unreadable {
    #[error("longer than {limit} bytes")]
    TooLong { limit: usize },
    /// Says line and column, and at most names members; never a value.
    #[error("not the JSON that is expected: {0}")]
    Malformed(String),
}

/// Reads one JSON text of at most `limit` bytes.
pub(crate) fn read<T: DeserializeOwned>(text: &str, limit: usize) -> Result<T, Unreadable> {
    if text.len() > limit {
        return Err(Unreadable::TooLong { limit });
    }
    let Unambiguous = serde_json::from_str(text).map_err(malformed)?;
    serde_json::from_str(text).map_err(malformed)
}

fn malformed(error: serde_json::Error) -> Unreadable {
    let text = error.to_string();
    // Where a value is of another type, the library says which value that was.
    let what = match (error.classify(), text.find(", expected")) {
        (serde_json::error::Category::Data, Some(start)) => text[start + 2..].to_owned(),
        (serde_json::error::Category::Data, None) => text,
        _ => format!("line {} column {}", error.line(), error.column()),
    };
    Unreadable::Malformed(what)
}

/// Any value in which no object has a member twice.
struct Unambiguous;

impl<'de> serde::Deserialize<'de> for Unambiguous {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UnambiguousVisitor)
    }
}

struct UnambiguousVisitor;

impl<'de> Visitor<'de> for UnambiguousVisitor {
    type Value = Unambiguous;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Unambiguous, E> {
        Ok(Unambiguous)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Unambiguous, E> {
        Ok(Unambiguous)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Unambiguous, E> {
        Ok(Unambiguous)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Unambiguous, E> {
        Ok(Unambiguous)
    }

    fn visit_str<E>(self, _: &str) -> Result<Unambiguous, E> {
        Ok(Unambiguous)
    }

    fn visit_unit<E>(self) -> Result<Unambiguous, E> {
        Ok(Unambiguous)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Unambiguous, A::Error> {
        while elements.next_element::<Unambiguous>()?.is_some() {}
        Ok(Unambiguous)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Unambiguous, A::Error> {
        let mut names = BTreeSet::new();
        while let Some(name) = members.next_key::<String>()? {
            if !names.insert(name) {
                return Err(A::Error::custom("a member is there twice"));
            }
            members.next_value::<Unambiguous>()?;
        }
        Ok(Unambiguous)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_of_another_type_is_not_repeated() {
        let error = read::<u64>("\"hunter2\"", 100).unwrap_err().to_string();
        assert!(error.contains("expected u64") && !error.contains("hunter2"), "{error}");
    }
    use serde::de::IgnoredAny;

    fn readable(text: &str) -> bool {
        read::<IgnoredAny>(text, 1000).is_ok()
    }

    #[test]
    fn members_that_are_there_twice_are_refused_at_any_depth() {
        assert!(readable(r#"{"a":1,"b":[{"a":null},{"a":-1.5e3}],"c":{"a":true,"b":"x"}}"#));
        for text in [r#"{"a":1,"a":1}"#, r#"[{"b":{"a":1,"\u0061":2}}]"#, "{} {}", "", "{\"a\":}"] {
            assert!(!readable(text), "{text}");
        }
        assert!(!readable(&"[".repeat(999)));
        assert!(!readable(&" ".repeat(1001)));
    }
}
