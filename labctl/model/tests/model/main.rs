//! Tests of the crate from outside: one binary, one module per promise.

mod builtin;
mod defaults;
mod mutations;
mod rejected;
mod schema;
