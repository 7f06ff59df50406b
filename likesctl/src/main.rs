//! The `likesctl` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    likesctl::main()
}
