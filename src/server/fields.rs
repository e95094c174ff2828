//! Reads the fields of a JSON object one by one, so that every refusal names its field.
//!
//! Null counts as absent. Numbers may be given as text: seeds do not fit into the numbers of
//! JavaScript, and forms have nothing but text.

use serde_json::{Map, Value};

use super::fault::Fault;
use crate::pipeline::request::LoraChoice;

/// The longest text of a field, in bytes, other than images: see [`Fields::long_text`].
const MAX_TEXT: usize = 1 << 20;

/// The fields of one object.
pub struct Fields<'a>(pub &'a Map<String, Value>);

impl<'a> Fields<'a> {
    /// The fields of `value`.
    ///
    /// # Errors
    /// 422 if it is not an object.
    pub fn of(value: &'a Value) -> Result<Self, Fault> {
        value
            .as_object()
            .map(Fields)
            .ok_or_else(|| Fault::new(422, "bad_argument", "the body is not a JSON object"))
    }

    /// The value of a field, unless it is null.
    pub fn get(&self, name: &str) -> Option<&'a Value> {
        self.0.get(name).filter(|v| !v.is_null())
    }

    fn refuse<T>(name: &str, expected: &str) -> Result<T, Fault> {
        Err(Fault::invalid(name, format!("{name}: expected {expected}")))
    }

    /// A text of any length.
    pub fn long_text(&self, name: &str) -> Result<Option<&'a str>, Fault> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Self::refuse(name, "text"),
        }
    }

    /// A text.
    pub fn text(&self, name: &str) -> Result<Option<&'a str>, Fault> {
        match self.long_text(name)? {
            Some(text) if text.len() > MAX_TEXT => Self::refuse(name, "a shorter text"),
            text => Ok(text),
        }
    }

    /// A whole number from 0.
    pub fn whole(&self, name: &str) -> Result<Option<usize>, Fault> {
        let read = |value: &Value| match value {
            Value::Number(n) => n.as_u64().or_else(|| {
                // Some clients send 20.0.
                let real = n.as_f64()?;
                (real.fract() == 0.0 && (0.0..1e15).contains(&real)).then_some(real as u64)
            }),
            Value::String(text) => text.trim().parse().ok(),
            _ => None,
        };
        match self.get(name) {
            None => Ok(None),
            Some(value) => match read(value).and_then(|n| usize::try_from(n).ok()) {
                Some(number) => Ok(Some(number)),
                None => Self::refuse(name, "a whole number from 0"),
            },
        }
    }

    /// A number. One that is too large for an f32 is refused.
    pub fn real(&self, name: &str) -> Result<Option<f32>, Fault> {
        let read = |value: &Value| match value {
            Value::Number(n) => n.as_f64(),
            Value::String(text) => text.trim().parse().ok(),
            _ => None,
        };
        match self.get(name) {
            None => Ok(None),
            Some(value) => match read(value).map(|x| x as f32).filter(|x| x.is_finite()) {
                Some(number) => Ok(Some(number)),
                None => Self::refuse(name, "a number"),
            },
        }
    }

    /// A seed; -1 and `random` are none.
    pub fn seed(&self, name: &str) -> Result<Option<u64>, Fault> {
        let read = |value: &Value| match value {
            Value::Number(n) if n.as_i64() == Some(-1) => Some(None),
            Value::Number(n) => n.as_u64().map(Some),
            Value::String(text) => match text.trim() {
                "" | "-1" | "random" => Some(None),
                text => text.parse().ok().map(Some),
            },
            _ => None,
        };
        match self.get(name) {
            None => Ok(None),
            Some(value) => match read(value) {
                Some(seed) => Ok(seed),
                None => Self::refuse(name, "a whole number from 0 to 18446744073709551615, or -1"),
            },
        }
    }

    /// True or false.
    pub fn flag(&self, name: &str) -> Result<bool, Fault> {
        match self.get(name) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(Value::String(text)) if text == "true" => Ok(true),
            Some(Value::String(text)) if text == "false" => Ok(false),
            Some(_) => Self::refuse(name, "true or false"),
        }
    }

    /// A list of LoRAs: names, or objects with a name under any of the usual keys (`name`, `path`)
    /// and a strength (`strength`, `weight`, `scale`, `multiplier`).
    pub fn loras(&self, name: &str) -> Result<Vec<LoraChoice>, Fault> {
        let Some(value) = self.get(name) else { return Ok(Vec::new()) };
        let Some(list) = value.as_array() else { return Self::refuse(name, "a list of LoRAs") };
        let read = |item: &Value| {
            if let Some(text) = item.as_str() {
                return Ok(LoraChoice::new(text, 1.0));
            }
            let fields = match item {
                Value::Object(map) => Fields(map),
                _ => return Self::refuse(name, "names, or objects with a name and a strength"),
            };
            let text = match fields.text("name")? {
                Some(text) => Some(text),
                None => fields.text("path")?,
            };
            let mut strength = None;
            for key in ["strength", "weight", "scale", "multiplier"] {
                strength = strength.or(fields.real(key)?);
            }
            let text_strength = fields.real("text_strength")?;
            let choice = |text| LoraChoice {
                text_strength,
                ..LoraChoice::new(text, strength.unwrap_or(1.0))
            };
            match text {
                Some(text) => Ok(choice(text)),
                None => Self::refuse(name, "a name for every LoRA"),
            }
        };
        list.iter().map(read).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn f31_to_f33_values_that_cannot_be_meant_are_refused_by_name() {
        let value = json!({
            "size": -1, "big": 1e30, "half": 0.5, "twenty": 20.0, "text": "7", "none": null,
            "huge": 1e39, "seed": "18446744073709551615", "random": -1,
            "over": "18446744073709551616",
            "list": [], "minus": -2,
        });
        let fields = Fields::of(&value).unwrap();
        for name in ["size", "big", "half", "list"] {
            let fault = fields.whole(name).unwrap_err();
            assert_eq!((fault.status, fault.parameter.as_deref()), (422, Some(name)));
        }
        assert_eq!(fields.whole("twenty").unwrap(), Some(20));
        assert_eq!(fields.whole("text").unwrap(), Some(7));
        assert_eq!((fields.whole("none").unwrap(), fields.whole("absent").unwrap()), (None, None));
        assert!(fields.real("huge").is_err() && fields.real("list").is_err());
        assert_eq!(fields.real("half").unwrap(), Some(0.5));
        assert_eq!(fields.seed("seed").unwrap(), Some(u64::MAX));
        assert_eq!(fields.seed("random").unwrap(), None);
        assert!(fields.seed("over").is_err() && fields.seed("minus").is_err());
        assert!(fields.text("size").is_err() && fields.flag("text").is_err());
    }

    #[test]
    fn loras_have_the_keys_of_every_client() {
        let value =
            json!({"loras": ["a", {"path": "b", "scale": 0.5}, {"name": "c", "weight": 2}]});
        let loras = Fields::of(&value).unwrap().loras("loras").unwrap();
        let found: Vec<_> = loras.iter().map(|l| (l.name.as_str(), l.strength)).collect();
        assert_eq!(found, [("a", 1.0), ("b", 0.5), ("c", 2.0)]);
        assert!(Fields::of(&json!({"l": [{"scale": 1}]})).unwrap().loras("l").is_err());
        assert!(Fields::of(&json!({"l": "a"})).unwrap().loras("l").is_err());
    }
}
