//! The `labctl` binary: hands its arguments to the library and turns the outcome into an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    labctl::main(std::env::args_os()).into()
}
