//! Lab files that are part of the binary: the same text as in `labs/`, so that `labctl up dsr` works
//! anywhere.

/// Name and text of each, in the order in which the documentation introduces them.
const LABS: [(&str, &str); 4] = [
    ("dsr", include_str!("../../../labs/dsr.yaml")),
    ("snat", include_str!("../../../labs/snat.yaml")),
    ("hybrid", include_str!("../../../labs/hybrid.yaml")),
    ("local", include_str!("../../../labs/local.yaml")),
];

/// The text of a built-in lab file: `dsr`, `snat`, `hybrid` or `local`.
pub fn builtin_lab(name: &str) -> Option<&'static str> {
    LABS.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

/// Names of the built-in labs.
pub fn builtin_names() -> impl ExactSizeIterator<Item = &'static str> + Clone {
    LABS.iter().map(|(name, _)| *name)
}
