//! The committed schema is the one that the types give.

use std::fs;
use std::path::Path;

use labctl_model::{CHECK_NAMES, schema};
use serde_json::Value;

#[test]
fn the_committed_schema_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/lab.schema.json");
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        fs::write(&path, schema())
            .unwrap_or_else(|error| panic!("failed to write {}: {error}", path.display()));
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    // As values: the order of keys depends on serde_json's features, which another crate may turn on.
    let committed: Value = serde_json::from_str(&committed).unwrap_or_default();
    let current: Value = serde_json::from_str(&schema()).expect("a schema is JSON");
    assert!(
        committed == current,
        "assets/lab.schema.json is out of date: run `UPDATE_SCHEMA=1 cargo test -p labctl-model schema` and commit it"
    );
}

#[test]
fn the_schema_knows_what_the_parser_knows() {
    let schema: Value = serde_json::from_str(&schema()).expect("a schema is JSON");
    let at = |pointer: &str| schema.pointer(pointer).unwrap_or_else(|| panic!("nothing at {pointer}"));
    assert_eq!(at("/additionalProperties"), false);
    assert_eq!(at("/required"), &serde_json::json!(["apiVersion", "name", "mode", "nodes", "backends"]));
    assert_eq!(at("/$defs/Node/required"), &serde_json::json!(["name", "address", "podCIDR"]));
    let text = schema.to_string();
    for name in CHECK_NAMES {
        assert!(text.contains(&format!("\"{name}\"")), "no check {name}");
    }
}
