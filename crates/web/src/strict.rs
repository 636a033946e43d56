//! JSON without its traps.
//!
//! Two members of one name (of which parsers take the first, the last or neither), nesting without end, and characters
//! that no store and no terminal should be given are refused before anything looks at the content.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Deeper than anything that is asked for.
const DEPTH_MAX: u8 = 32;

/// Why a text is refused.
#[derive(Debug)]
pub(crate) enum Refused {
    /// It is no JSON.
    Syntax(String),
    /// It is, but not one that is taken.
    Content(String),
}

/// Begins the messages that are ours, to tell them from the parser's.
const OURS: &str = "refused: ";

/// Reads a JSON text.
pub(crate) fn parse(text: &[u8]) -> Result<Value, Refused> {
    let mut parser = serde_json::Deserializer::from_slice(text);
    let refused = |error: serde_json::Error| {
        let message = error.to_string();
        match message.strip_prefix(OURS) {
            Some(ours) => Refused::Content(ours.to_owned()),
            None => Refused::Syntax(message),
        }
    };
    let value = Strict { depth: 0 }.deserialize(&mut parser).map_err(refused)?;
    parser.end().map_err(refused)?;
    Ok(value)
}

/// Whether a text has characters that are never part of one: all control characters but line ends and tabs.
pub(crate) fn has_controls(text: &str) -> bool {
    text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t'))
}

#[derive(Clone, Copy)]
struct Strict {
    depth: u8,
}

impl Strict {
    fn below<E: serde::de::Error>(self) -> Result<Self, E> {
        if self.depth >= DEPTH_MAX {
            return Err(E::custom(format!("{OURS}the body is nested more than {DEPTH_MAX} deep")));
        }
        Ok(Self { depth: self.depth + 1 })
    }
}

fn check<E: serde::de::Error>(text: &str) -> Result<(), E> {
    if has_controls(text) {
        return Err(E::custom(format!("{OURS}a text in the body has a control character")));
    }
    Ok(())
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, parser: D) -> Result<Value, D::Error> {
        parser.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        let number = Number::from_f64(value);
        number.map(Value::Number).ok_or_else(|| E::custom(format!("{OURS}a number in the body is too large")))
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Value, E> {
        check(text)?;
        Ok(text.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let (below, mut items) = (self.below()?, Vec::new());
        while let Some(item) = access.next_element_seed(below)? {
            items.push(item);
        }
        Ok(items.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let (below, mut members) = (self.below()?, Map::new());
        while let Some(name) = access.next_key::<String>()? {
            check(&name)?;
            let value = access.next_value_seed(below)?;
            if members.contains_key(&name) {
                let name: String = name.chars().take(100).collect();
                return Err(A::Error::custom(format!("{OURS}`{name}` is in the body twice")));
            }
            members.insert(name, value);
        }
        Ok(members.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_json_reads_as_it_is() {
        for text in ["null", "{}", r#"{"a":[1,-2,0.5,true,null,"x\ny"],"b":{"a":1}}"#, "18446744073709551615"]
        {
            assert_eq!(parse(text.as_bytes()).unwrap(), serde_json::from_str::<Value>(text).unwrap());
        }
    }

    #[test]
    fn what_is_none_is_told_from_what_is_not_taken() {
        for text in ["", "{", "{}{}", "nul", "\u{feff}{}", r#""\ud800""#, "{'a':1}", "[1,]"] {
            assert!(matches!(parse(text.as_bytes()), Err(Refused::Syntax(_))), "{text}");
        }
        let deep = "[".repeat(33) + &"]".repeat(33);
        for text in [
            r#"{"a":1,"a":1}"#,
            r#"{"x":{"a":1,"\u0061":2}}"#,
            r#""\u0000""#,
            r#"["\u001b[2J"]"#,
            r#"{"\u0007":1}"#,
            &deep,
        ] {
            assert!(matches!(parse(text.as_bytes()), Err(Refused::Content(_))), "{text}");
        }
        // Not the stack's depth but ours is reached first.
        assert!(parse("[".repeat(1_000_000).as_bytes()).is_err());
        assert!(parse(b"\"\xff\"").is_err());
    }
}
