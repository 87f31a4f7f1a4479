//! JSON from which something is decided: no member occurs twice, and numbers compare exactly or not at all.
//!
//! Two readers of one document that take different ones of two members of a name are how signed documents are made to mean
//! what nobody signed, so such a document is no document here.

use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;

/// Above it not every whole number has a value of its own in a double.
const MAX_EXACT: f64 = 9_007_199_254_740_992.0;
const SHOWN_CHARACTERS: usize = 60;

#[derive(Clone, Debug, PartialEq)]
pub enum Json {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    Array(Vec<Json>),
    Object(BTreeMap<String, Json>),
}

/// A number, as exactly as it can be told: one that is whole is [`Number::Integer`], however it was written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Number {
    Integer(i128),
    Real(f64),
}

/// Where a document stops being one. `reason` may repeat names of its members, and no values.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("line {line}, column {column}: {reason}")]
pub struct MalformedJson {
    pub line: usize,
    pub column: usize,
    pub reason: String,
}

impl Json {
    /// One value, nested at most 127 deep, and nothing behind it.
    pub fn parse(bytes: &[u8]) -> Result<Self, MalformedJson> {
        serde_json::from_slice(bytes).map_err(|error| {
            let reason = match error.classify() {
                // Ours, of the visitor below.
                serde_json::error::Category::Data => error.to_string(),
                _ => "not JSON".to_owned(),
            };
            let reason = reason.split(" at line ").next().unwrap_or_default().to_owned();
            MalformedJson { line: error.line(), column: error.column(), reason }
        })
    }

    pub fn member(&self, name: &str) -> Option<&Json> {
        match self {
            Json::Object(members) => members.get(name),
            _ => None,
        }
    }

    pub fn as_text(&self) -> Option<&str> {
        match self {
            Json::Text(text) => Some(text),
            _ => None,
        }
    }

    pub fn as_array(&self) -> Option<&[Json]> {
        match self {
            Json::Array(items) => Some(items),
            _ => None,
        }
    }

    /// What kind of value this is, in words.
    pub const fn kind(&self) -> &'static str {
        match self {
            Json::Null => "null",
            Json::Bool(_) => "a boolean",
            Json::Number(_) => "a number",
            Json::Text(_) => "a string",
            Json::Array(_) => "an array",
            Json::Object(_) => "an object",
        }
    }
}

impl Number {
    fn of_real(value: f64) -> Self {
        if value.fract() == 0.0 && value.abs() < MAX_EXACT {
            Number::Integer(value as i128)
        } else {
            Number::Real(value)
        }
    }

    /// Whether it is known which number was meant: large ones with an exponent or a fraction, and those beyond 64 bits, are
    /// rounded as they are read.
    pub fn is_exact(self) -> bool {
        match self {
            Number::Integer(_) => true,
            Number::Real(value) => value.abs() < MAX_EXACT,
        }
    }

    /// `None` where one of them is not exact.
    pub fn compare(self, other: Self) -> Option<Ordering> {
        if !(self.is_exact() && other.is_exact()) {
            return None;
        }
        match (self, other) {
            (Number::Integer(own), Number::Integer(theirs)) => Some(own.cmp(&theirs)),
            (Number::Real(own), Number::Real(theirs)) => own.partial_cmp(&theirs),
            (Number::Integer(own), Number::Real(theirs)) => Self::compare_mixed(own, theirs),
            (Number::Real(own), Number::Integer(theirs)) => {
                Self::compare_mixed(theirs, own).map(Ordering::reverse)
            }
        }
    }

    /// `real` is below the limit and not whole, so a whole number beyond the limit is beyond it on its side.
    fn compare_mixed(integer: i128, real: f64) -> Option<Ordering> {
        let converted = integer as f64;
        if converted.abs() >= MAX_EXACT { Some(integer.cmp(&0)) } else { converted.partial_cmp(&real) }
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Number::Integer(value) => write!(f, "{value}"),
            Number::Real(value) => write!(f, "{value:?}"),
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Json;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Number(Number::Integer(value.into())))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Number(Number::Integer(value.into())))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Json, E> {
        Ok(Json::Number(Number::of_real(value)))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Json, E> {
        Ok(Json::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
        let mut array = Vec::new();
        while let Some(item) = items.next_element()? {
            array.push(item);
        }
        Ok(Json::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Json, A::Error> {
        let mut object = BTreeMap::new();
        while let Some(name) = members.next_key::<String>()? {
            if object.contains_key(&name) {
                return Err(A::Error::custom(format_args!("member {} occurs twice", shown(&name))));
            }
            let value = members.next_value()?;
            object.insert(name, value);
        }
        Ok(Json::Object(object))
    }
}

/// Foreign text made fit for a message: printable ASCII, bounded, in backticks.
pub fn shown(text: &str) -> String {
    let printable =
        |character: char| if character.is_ascii_graphic() || character == ' ' { character } else { '?' };
    let mut out: String = text.chars().take(SHOWN_CHARACTERS).map(printable).collect();
    if text.chars().nth(SHOWN_CHARACTERS).is_some() {
        out.push_str("...");
    }
    format!("`{out}`")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(text: &str) -> Number {
        match Json::parse(text.as_bytes()) {
            Ok(Json::Number(number)) => number,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_member_occurs_once_at_every_depth() {
        assert!(Json::parse(br#"{"a":{"a":1},"b":[{"a":1},{"a":2}]}"#).is_ok());
        for (text, column) in [(r#"{"a":1,"a":1}"#, 10), (r#"[{"b":{"a":1,"\u0061":2}}]"#, 21)] {
            let refused = Json::parse(text.as_bytes()).unwrap_err();
            assert_eq!(
                (refused.reason.as_str(), refused.column),
                ("member `a` occurs twice", column),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_json_is_refused_without_its_content() {
        let deep = "[".repeat(200);
        for text in ["", "{", "{}x", "[1,]", "nul", "\"secret", "01", &deep] {
            assert_eq!(Json::parse(text.as_bytes()).unwrap_err().reason, "not JSON", "{text}");
        }
        assert_eq!(Json::parse(b"\"\xff\"").unwrap_err().reason, "not JSON");
    }

    #[test]
    fn numbers_compare_by_value_or_not_at_all() {
        use Ordering::{Equal, Greater, Less};
        for (one, other, expected) in [
            ("1", "1.0", Some(Equal)),
            ("1", "1e0", Some(Equal)),
            ("0", "-0.0", Some(Equal)),
            ("1", "1.5", Some(Less)),
            ("2", "1.5", Some(Greater)),
            ("1.25", "1.5", Some(Less)),
            ("18446744073709551615", "18446744073709551614", Some(Greater)),
            ("9007199254740993", "9007199254740992", Some(Greater)),
            ("9007199254740993", "0.5", Some(Greater)),
            ("-9007199254740993", "0.5", Some(Less)),
            ("18446744073709551616", "18446744073709551616", None),
            ("1e300", "1", None),
        ] {
            assert_eq!(number(one).compare(number(other)), expected, "{one} {other}");
            assert_eq!(number(other).compare(number(one)), expected.map(Ordering::reverse), "{other} {one}");
        }
    }
}
