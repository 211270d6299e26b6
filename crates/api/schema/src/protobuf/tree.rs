//! What the writer reads: a tree of JSON, be it a [`Value`] or a [`Borrowed`] one that copies no text.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{Number, Value};

/// One value of a JSON tree.
pub trait Json: Sized + Serialize {
    /// A member of an object.
    fn get(&self, name: &str) -> Option<&Self>;
    fn is_null(&self) -> bool;
    fn as_bool(&self) -> Option<bool>;
    fn as_text(&self) -> Option<&str>;
    fn as_number(&self) -> Option<&Number>;
    /// The items of a list.
    fn items(&self) -> Option<&[Self]>;
    fn is_object(&self) -> bool;
    /// The members of an object; of nothing else there are any.
    fn members<'a>(&'a self, visit: &mut dyn FnMut(&'a str, &'a Self));
}

impl Json for Value {
    fn get(&self, name: &str) -> Option<&Self> {
        Value::get(self, name)
    }
    fn is_null(&self) -> bool {
        Value::is_null(self)
    }
    fn as_bool(&self) -> Option<bool> {
        Value::as_bool(self)
    }
    fn as_text(&self) -> Option<&str> {
        self.as_str()
    }
    fn as_number(&self) -> Option<&Number> {
        Value::as_number(self)
    }
    fn items(&self) -> Option<&[Self]> {
        self.as_array().map(Vec::as_slice)
    }
    fn is_object(&self) -> bool {
        Value::is_object(self)
    }
    fn members<'a>(&'a self, visit: &mut dyn FnMut(&'a str, &'a Self)) {
        self.as_object().into_iter().flatten().for_each(|(name, value)| visit(name, value));
    }
}

/// A tree over the bytes that it was read from: text without escapes is not copied, members keep their order.
#[derive(Debug)]
pub enum Borrowed<'a> {
    Null,
    Bool(bool),
    Number(Number),
    Text(Cow<'a, str>),
    List(Vec<Borrowed<'a>>),
    Object(Vec<(Cow<'a, str>, Borrowed<'a>)>),
}

impl Json for Borrowed<'_> {
    fn get(&self, name: &str) -> Option<&Self> {
        match self {
            // Objects have few members, and most names differ in length.
            Borrowed::Object(members) => members.iter().find(|(known, _)| known == name).map(|(_, value)| value),
            _ => None,
        }
    }
    fn is_null(&self) -> bool {
        matches!(self, Borrowed::Null)
    }
    fn as_bool(&self) -> Option<bool> {
        match self {
            Borrowed::Bool(truth) => Some(*truth),
            _ => None,
        }
    }
    fn as_text(&self) -> Option<&str> {
        match self {
            Borrowed::Text(text) => Some(text),
            _ => None,
        }
    }
    fn as_number(&self) -> Option<&Number> {
        match self {
            Borrowed::Number(number) => Some(number),
            _ => None,
        }
    }
    fn items(&self) -> Option<&[Self]> {
        match self {
            Borrowed::List(items) => Some(items),
            _ => None,
        }
    }
    fn is_object(&self) -> bool {
        matches!(self, Borrowed::Object(_))
    }
    fn members<'a>(&'a self, visit: &mut dyn FnMut(&'a str, &'a Self)) {
        if let Borrowed::Object(members) = self {
            members.iter().for_each(|(name, value)| visit(name, value));
        }
    }
}

impl Serialize for Borrowed<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Borrowed::Null => serializer.serialize_unit(),
            Borrowed::Bool(truth) => serializer.serialize_bool(*truth),
            Borrowed::Number(number) => number.serialize(serializer),
            Borrowed::Text(text) => serializer.serialize_str(text),
            Borrowed::List(items) => serializer.collect_seq(items),
            Borrowed::Object(members) => {
                let mut map = serializer.serialize_map(Some(members.len()))?;
                for (name, value) in members {
                    map.serialize_entry(name, value)?;
                }
                map.end()
            }
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Borrowed<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Build)
    }
}

/// An object's key, borrowed where it has no escapes.
struct Key<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Key<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Key<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

struct Build;

impl<'de> Visitor<'de> for Build {
    type Value = Borrowed<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Borrowed::Null)
    }
    fn visit_bool<E>(self, truth: bool) -> Result<Self::Value, E> {
        Ok(Borrowed::Bool(truth))
    }
    fn visit_i64<E>(self, number: i64) -> Result<Self::Value, E> {
        Ok(Borrowed::Number(number.into()))
    }
    fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
        Ok(Borrowed::Number(number.into()))
    }
    fn visit_f64<E>(self, number: f64) -> Result<Self::Value, E> {
        Ok(Number::from_f64(number).map_or(Borrowed::Null, Borrowed::Number))
    }
    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Borrowed::Text(Cow::Borrowed(text)))
    }
    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Borrowed::Text(Cow::Owned(text.to_owned())))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Borrowed::List(items))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::new();
        while let Some((Key(name), value)) = access.next_entry()? {
            members.push((name, value));
        }
        Ok(Borrowed::Object(members))
    }
}
