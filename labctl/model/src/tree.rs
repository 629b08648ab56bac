//! YAML text to a tree in which every value knows its place. First step of reading a lab file: owns the
//! choice of the YAML crate and its limits, knows nothing of the lab file's fields.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::options::{DuplicateKeyPolicy, MergeKeyPolicy};
use serde_saphyr::{Error, Location, Options, Spanned};

use crate::diagnostic::{Diagnostic, Place};

/// Values that a file may hold, expanded aliases included. A lab of a hundred nodes has about a thousand.
const MAX_VALUES: usize = 20_000;
/// Bytes of a file. The largest lab has some tens of thousands.
const MAX_BYTES: usize = 1 << 20;
/// Lists and mappings inside each other. The grammar needs four.
const MAX_DEPTH: usize = 32;

/// A value and where it stands.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) value: Value,
    pub(crate) place: Place,
}

/// A YAML value.
#[derive(Debug)]
pub(crate) enum Value {
    /// `null`, `~` or nothing at all.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// An integer; every one that the grammar takes fits.
    Integer(i64),
    /// Another number as it was written.
    Number(String),
    /// Any other scalar.
    Text(String),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping. Keys are text; no key is there twice.
    Map(Vec<(Key, Node)>),
}

/// A key of a mapping.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) text: String,
    pub(crate) place: Place,
}

/// Reads one document.
///
/// # Errors
/// The syntax error, or every duplicate key and every key that is not text.
pub(crate) fn read(text: &str) -> Result<Node, Vec<Diagnostic>> {
    if text.len() > MAX_BYTES {
        let message = format!("the file has {} bytes, a lab file has at most {MAX_BYTES}", text.len());
        return Err(vec![Diagnostic::new(Place::FILE, message)]);
    }
    let raw: Spanned<Raw> =
        serde_saphyr::from_str_with_options(text, options()).map_err(|error| vec![syntax_error(&error)])?;
    let mut found = Vec::new();
    let root = Builder { text, found: &mut found }.node(raw);
    if found.is_empty() { Ok(root) } else { Err(found) }
}

fn options() -> Options {
    serde_saphyr::options! {
        // YAML 1.2: `on`, `yes` and `no` are text. `on` is a field of faults.
        strict_booleans: true,
        // Duplicates are reported here, all of them and with both places.
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        // `<<` would hide where a value stands; it is reported as an unknown field.
        merge_keys: MergeKeyPolicy::AsOrdinary,
        reject_unsupported_tags: true,
        with_snippet: false,
        budget: serde_saphyr::budget! {
            max_nodes: MAX_VALUES,
            max_events: 4 * MAX_VALUES,
            max_depth: MAX_DEPTH,
            flow_nesting_limit: MAX_DEPTH,
        },
    }
}

fn syntax_error(error: &Error) -> Diagnostic {
    let place = error.location().map_or(Place::FILE, place_of);
    let text = error.to_string();
    // The crate appends the place, which the excerpt shows already.
    let message = text.split(" at line ").next().unwrap_or(&text);
    let known = |part: &str| message.contains(part);
    if matches!(error, Error::MultipleDocuments { .. }) {
        Diagnostic::new(place, "a second document starts here")
            .help("a lab file holds one lab: give the other a file of its own")
    } else if known("budget breached") || known("recursion limit") {
        // Limits are reached inside other errors too (aliases), so their text is what tells them.
        Diagnostic::new(place, "the file is too deep or too large for a lab file")
            .help(format!("at most {MAX_VALUES} values, aliases expanded, and {MAX_DEPTH} levels"))
    } else if known("recursive references") {
        Diagnostic::new(place, "this alias stands inside what it refers to").help("write the value out")
    } else if known("tabs") {
        Diagnostic::new(place, message).help("indent with spaces")
    } else {
        Diagnostic::new(place, message)
    }
}

fn place_of(at: Location) -> Place {
    let number = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    if at == Location::UNKNOWN {
        return Place::FILE;
    }
    Place {
        line: number(at.line()).max(1),
        column: number(at.column()).max(1),
        length: number(at.span().len()).max(1),
    }
}

/// Turns what the YAML crate handed over into nodes and reports keys that cannot be.
struct Builder<'a> {
    text: &'a str,
    found: &'a mut Vec<Diagnostic>,
}

impl Builder<'_> {
    fn node(&mut self, raw: Spanned<Raw>) -> Node {
        let place = place_of(raw.referenced);
        let value = match raw.value {
            Raw::Null => Value::Null,
            Raw::Bool(value) => Value::Bool(value),
            Raw::Integer(value) => Value::Integer(value),
            Raw::Float(value) => Value::Number(self.written(raw.defined).unwrap_or(value.to_string())),
            Raw::Text(value) => Value::Text(value),
            Raw::List(items) => Value::List(items.into_iter().map(|item| self.node(item)).collect()),
            Raw::Map(entries) => Value::Map(self.entries(entries)),
        };
        Node { value, place }
    }

    fn entries(&mut self, raw: Vec<(Spanned<Raw>, Spanned<Raw>)>) -> Vec<(Key, Node)> {
        let mut entries: Vec<(Key, Node)> = Vec::with_capacity(raw.len());
        for (key, value) in raw {
            let value = self.node(value);
            let place = place_of(key.referenced);
            let Raw::Text(text) = key.value else {
                self.found.push(Diagnostic::new(place, "this key is not text").help("use a plain word"));
                continue;
            };
            match entries.iter().find(|(earlier, _)| earlier.text == text) {
                Some((earlier, _)) => self.found.push(
                    Diagnostic::new(place, format!("field `{text}` is given twice"))
                        .related(earlier.place, "first given here"),
                ),
                None => entries.push((Key { text, place }, value)),
            }
        }
        entries
    }

    /// A scalar as it stands in the file.
    fn written(&self, at: Location) -> Option<String> {
        let span = at.span();
        let start = usize::try_from(span.byte_offset()?).ok()?;
        let len = usize::try_from(span.byte_len()?).ok()?;
        self.text.get(start..start.checked_add(len)?).map(str::to_owned)
    }
}

/// What the YAML crate resolves scalars to.
enum Raw {
    Null,
    Bool(bool),
    Integer(i64),
    Float(f64),
    Text(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<Raw>, Spanned<Raw>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        Raw::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Integer(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        Ok(i64::try_from(value).map_or(Raw::Float(value as f64), Raw::Integer))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Raw, E> {
        Ok(Raw::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Raw::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Raw::Map(entries))
    }
}
