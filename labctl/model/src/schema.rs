//! The JSON schema of lab files, for editors and for whoever writes lab files by program.

use schemars::generate::SchemaSettings;

use crate::file::LabFile;

/// The schema as pretty-printed JSON (draft 2020-12) with a newline at its end: the content of
/// `assets/lab.schema.json`. A file that [`crate::parse`] takes is always valid by it; the reverse does not
/// hold, because a schema cannot say that two addresses differ.
pub fn schema() -> String {
    let generator = SchemaSettings::draft2020_12().into_generator();
    let schema = generator.into_root_schema_for::<LabFile>();
    let mut text = serde_json::to_string_pretty(&schema).expect("a schema is plain JSON");
    text.push('\n');
    text
}
