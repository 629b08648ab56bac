//! [`Given`]: a value together with its place in the lab file, and the reader that fills it from a
//! [`Node`]. The reader goes on after a mistake, so that one run shows all of them. Knows serde's data model
//! and nothing of the lab file's fields; those are in `file.rs`.

use std::cell::RefCell;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::value::StrDeserializer;
use serde::de::{
    self, Deserialize, DeserializeOwned, DeserializeSeed, Deserializer, Expected, IntoDeserializer,
    MapAccess, SeqAccess, Unexpected, Visitor,
};

use crate::diagnostic::{Diagnostic, Place, did_you_mean, one_of};
use crate::tree::{Key, Node, Value};

/// Name by which [`Given`] makes itself known to [`Reader`].
const GIVEN: &str = "labctl_model::Given";

/// A value that the user wrote, and where. Dereferences to the value.
pub(crate) struct Given<T> {
    /// `None` only while mistakes are being collected: [`read`] never hands such a value out.
    value: Option<T>,
    pub(crate) place: Place,
}

impl<T> Deref for Given<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.value.as_ref().expect("read() hands out no file in which a value is missing")
    }
}

/// Reads a whole file.
///
/// # Errors
/// Every mistake of grammar: unknown fields, wrong types, values that are not in a list. Of the required
/// fields that one mapping lacks, only the first.
pub(crate) fn read<T: DeserializeOwned>(root: &Node) -> Result<T, Vec<Diagnostic>> {
    let found = RefCell::new(Vec::new());
    let read = T::deserialize(Reader { node: root, found: &found });
    let mut found = found.into_inner();
    match read {
        Ok(file) if found.is_empty() => Ok(file),
        Ok(_) => Err(found),
        Err(problem) => {
            found.push(problem.at(root.place));
            Err(found)
        }
    }
}

/// Why one value cannot be read; gets its place from the nearest [`Given`] around it.
#[derive(Debug)]
struct Problem {
    message: String,
    help: Option<String>,
}

impl Problem {
    fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), help: None }
    }

    fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    fn expected(expected: &dyn fmt::Display, node: &Node) -> Self {
        Self::new(format!("expected {expected}, found {}", node.value))
    }

    fn at(self, place: Place) -> Diagnostic {
        Diagnostic { message: self.message, place, related: None, help: self.help }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Problem {}

impl de::Error for Problem {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(message.to_string())
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(format!("expected {expected}, found {}", plain(found)))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_type(found, expected)
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new(format!("field `{field}` is missing"))
    }
}

/// The words that [`Value`]'s display form uses.
fn plain(found: Unexpected<'_>) -> String {
    match found {
        Unexpected::Bool(value) => format!("`{value}`"),
        Unexpected::Unsigned(value) => format!("number `{value}`"),
        Unexpected::Signed(value) => format!("number `{value}`"),
        Unexpected::Float(value) => format!("number `{value}`"),
        Unexpected::Str(value) => format!("`{value}`"),
        Unexpected::Unit | Unexpected::Option => "nothing".to_owned(),
        Unexpected::Seq => "a list".to_owned(),
        Unexpected::Map => "a mapping".to_owned(),
        other => other.to_string(),
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("nothing"),
            Self::Bool(value) => write!(f, "`{value}`"),
            Self::Integer(value) => write!(f, "number `{value}`"),
            Self::Number(written) => write!(f, "number `{written}`"),
            Self::Text(text) if text.contains('\n') => f.write_str("text of several lines"),
            Self::Text(text) => write!(f, "`{text}`"),
            Self::List(_) => f.write_str("a list"),
            Self::Map(_) => f.write_str("a mapping"),
        }
    }
}

/// serde's view of a node.
#[derive(Clone, Copy)]
struct Reader<'a> {
    node: &'a Node,
    found: &'a RefCell<Vec<Diagnostic>>,
}

impl<'a> Reader<'a> {
    fn of(self, node: &'a Node) -> Self {
        Self { node, found: self.found }
    }

    fn report(self, found: Diagnostic) {
        self.found.borrow_mut().push(found);
    }

    fn list(self, items: &'a [Node]) -> Items<'a> {
        Items { reader: self, rest: items.iter() }
    }

    /// An integer from 0 to `max`, the only kind that the grammar has.
    fn integer<'de, V: Visitor<'de>>(self, visitor: V, max: u64) -> Result<V::Value, Problem> {
        let expected = format!("an integer from 0 to {max}");
        match &self.node.value {
            Value::Integer(value) => match u64::try_from(*value) {
                Ok(value) if value <= max => visitor.visit_u64(value),
                _ => Err(Problem::expected(&expected, self.node)),
            },
            Value::Text(text) if text.parse::<u64>().is_ok() => {
                Err(Problem::expected(&expected, self.node).help("take off the quotes"))
            }
            _ => Err(Problem::expected(&expected, self.node)),
        }
    }

    /// The entries whose keys are among `fields`; the others are reported.
    fn known_entries(self, entries: &'a [(Key, Node)], fields: &'static [&'static str]) -> Entries<'a> {
        let known = entries.iter().filter(|(key, _)| {
            let known = fields.contains(&key.text.as_str());
            if !known {
                self.report(unknown_field(key, fields));
            }
            known
        });
        Entries { reader: self, rest: known.collect::<Vec<_>>().into_iter(), value: None }
    }
}

fn unknown_field(key: &Key, fields: &'static [&'static str]) -> Diagnostic {
    let found = Diagnostic::new(key.place, format!("unknown field `{}`", key.text));
    match key.text.as_str() {
        "<<" => found.help("merge keys are not part of a lab file: write the fields out"),
        text => found.help(did_you_mean(text, fields.iter().copied())),
    }
}

macro_rules! integers {
    ($($method:ident: $type:ty),+) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
            self.integer(visitor, <$type>::MAX.into())
        }
    )+};
}

impl<'de> Deserializer<'de> for Reader<'_> {
    type Error = Problem;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Integer(value) => visitor.visit_i64(*value),
            Value::Number(_) => Err(Problem::expected(&expecting(&visitor), self.node)),
            Value::Text(text) => visitor.visit_str(text),
            Value::List(items) => visitor.visit_seq(self.list(items)),
            Value::Map(entries) => {
                let rest = entries.iter().collect::<Vec<_>>().into_iter();
                visitor.visit_map(Entries { reader: self, rest, value: None })
            }
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        match self.node.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Problem> {
        match name {
            GIVEN => visitor.visit_seq(GivenParts { reader: self, part: Part::Place(0) }),
            _ => visitor.visit_newtype_struct(self),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Problem> {
        match &self.node.value {
            Value::Map(entries) => visitor.visit_map(self.known_entries(entries, fields)),
            _ => {
                let help = format!("its fields are {}", fields.join(", "));
                Err(Problem::expected(&"a mapping", self.node).help(help))
            }
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Problem> {
        match &self.node.value {
            Value::Text(text) if variants.contains(&text.as_str()) => {
                let variant: StrDeserializer<'_, Problem> = text.as_str().into_deserializer();
                visitor.visit_enum(variant)
            }
            Value::Text(text) => {
                let problem = Problem::expected(&one_of(variants.iter().copied()), self.node);
                Err(match crate::diagnostic::closest(text, variants.iter().copied()) {
                    Some(name) => problem.help(format!("did you mean `{name}`?")),
                    None => problem,
                })
            }
            _ => Err(Problem::expected(&one_of(variants.iter().copied()), self.node)),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        match &self.node.value {
            Value::List(items) => visitor.visit_seq(self.list(items)),
            Value::Null => Err(Problem::expected(&"a list", self.node)),
            _ => Err(Problem::expected(&"a list", self.node).help("write `[...]`, or `- ` before each item")),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        match &self.node.value {
            Value::Text(text) => visitor.visit_str(text),
            Value::Bool(_) | Value::Integer(_) | Value::Number(_) => {
                Err(Problem::expected(&"text", self.node).help("put it in quotes"))
            }
            _ => Err(Problem::expected(&"text", self.node)),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        self.deserialize_string(visitor)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        match self.node.value {
            Value::Bool(value) => visitor.visit_bool(value),
            _ => Err(Problem::expected(&"`true` or `false`", self.node)),
        }
    }

    integers! { deserialize_u8: u8, deserialize_u16: u16, deserialize_u32: u32, deserialize_u64: u64 }

    serde::forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u128 f32 f64 char bytes byte_buf unit unit_struct tuple tuple_struct map
        identifier ignored_any
    }
}

/// What a visitor says that it expects.
fn expecting<'de, V: Visitor<'de>>(visitor: &V) -> String {
    struct Words<'v, V>(&'v V);
    impl<'de, V: Visitor<'de>> fmt::Display for Words<'_, V> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.expecting(f)
        }
    }
    Words(visitor).to_string()
}

/// The items of a list.
struct Items<'a> {
    reader: Reader<'a>,
    rest: std::slice::Iter<'a, Node>,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Problem;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Problem> {
        self.rest.next().map(|node| seed.deserialize(self.reader.of(node))).transpose()
    }
}

/// The entries of a mapping.
struct Entries<'a> {
    reader: Reader<'a>,
    rest: std::vec::IntoIter<&'a (Key, Node)>,
    value: Option<&'a Node>,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = Problem;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Problem> {
        let Some((key, value)) = self.rest.next() else { return Ok(None) };
        self.value = Some(value);
        let node = Node { value: Value::Text(key.text.clone()), place: key.place };
        seed.deserialize(Reader { node: &node, found: self.reader.found }).map(Some)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Problem> {
        let node = self.value.take().ok_or_else(|| Problem::new("value asked for before its key"))?;
        seed.deserialize(self.reader.of(node))
    }
}

/// The next part that a [`Given`] gets: line, column and length of its place, then its value.
#[derive(Clone, Copy)]
enum Part {
    Place(u8),
    Value,
    End,
}

/// What a [`Given`] is made of. A value that cannot be read is reported and handed over as the end
/// of the sequence, so that the fields beside it are still read.
struct GivenParts<'a> {
    reader: Reader<'a>,
    part: Part,
}

impl<'de> SeqAccess<'de> for GivenParts<'_> {
    type Error = Problem;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Problem> {
        let place = self.reader.node.place;
        let number = match self.part {
            Part::Place(0) => place.line,
            Part::Place(1) => place.column,
            Part::Place(_) => place.length,
            Part::Value => {
                self.part = Part::End;
                return Ok(match seed.deserialize(self.reader) {
                    Ok(value) => Some(value),
                    Err(problem) => {
                        self.reader.report(problem.at(place));
                        None
                    }
                });
            }
            Part::End => return Ok(None),
        };
        self.part = match self.part {
            Part::Place(n @ 0..2) => Part::Place(n + 1),
            _ => Part::Value,
        };
        seed.deserialize((number as u64).into_deserializer()).map(Some)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Given<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_newtype_struct(GIVEN, GivenVisitor(PhantomData))
    }
}

struct GivenVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for GivenVisitor<T> {
    type Value = Given<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value with its place")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Given<T>, A::Error> {
        let mut number = || -> Result<usize, A::Error> {
            parts.next_element()?.ok_or_else(|| de::Error::custom("a place has three numbers"))
        };
        let place = Place { line: number()?, column: number()?, length: number()? };
        Ok(Given { value: parts.next_element()?, place })
    }
}

/// In the schema a [`Given`] is what it holds.
impl<T: JsonSchema> JsonSchema for Given<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        T::schema_name()
    }

    fn schema_id() -> std::borrow::Cow<'static, str> {
        T::schema_id()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}
