//! A request's body as JSON, of no more values than clients send. Each takes many times its text in memory.

use crate::problem::Problem;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use std::fmt;

/// In all: members and items at any depth, and what holds them. A pool with every tag, rule and connection that it can have
/// has a few hundred.
pub const MAX_VALUES: usize = 1000;

pub fn parse(bytes: &[u8]) -> Result<Value, Problem> {
    let mut values = 0;
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = Counted(&mut values).deserialize(&mut deserializer);
    let value = value.and_then(|value| deserializer.end().map(|()| value));
    match value {
        Ok(value) if value.is_object() => Ok(value),
        Ok(_) => Err(Problem::invalid("The body must be a JSON object.".to_owned())),
        // Nothing else is of that kind: any value is welcome.
        Err(error) if error.is_data() => Err(Problem::too_many_values()),
        Err(error) => Err(Problem::malformed(&error)),
    }
}

/// One value, with how many were read before it.
struct Counted<'c>(&'c mut usize);

impl<'de> DeserializeSeed<'de> for Counted<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        *self.0 += 1;
        if *self.0 > MAX_VALUES {
            return Err(D::Error::custom("too many values"));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Counted<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(Counted(&mut *self.0))? {
            list.push(item);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            map.insert(name, members.next_value_seed(Counted(&mut *self.0))?);
        }
        Ok(map.into())
    }
}

/// How many values there are in one, itself included.
#[cfg(any(test, feature = "fuzzing"))]
pub fn values(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(values).sum(),
        Value::Object(members) => members.values().map(values).sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_an_object_with_an_end() {
        let text = r#"{"a":[null,true,-1,18446744073709551615,1.5,"\u00e9"],"b":{"c":{}}}"#;
        let value = parse(text.as_bytes()).unwrap();
        assert_eq!(value, serde_json::from_str::<Value>(text).unwrap());
        assert_eq!(values(&value), 10);
        let refused = |text: &str| format!("{:?}", parse(text.as_bytes()).unwrap_err());
        assert!(refused("[]").contains("must be a JSON object"));
        for text in ["", "{", "{} {}", "{\"a\":1e999}", &"[".repeat(1000)] {
            assert!(refused(text).contains("is not JSON (line 1"), "{text}: {}", refused(text));
        }
        let of = |items: usize| format!("{{\"a\":[{}]}}", vec!["0"; items].join(","));
        assert_eq!(values(&parse(of(MAX_VALUES - 2).as_bytes()).unwrap()), MAX_VALUES);
        assert!(refused(&of(MAX_VALUES - 1)).contains("at most 1000 values"));
    }
}
