//! The `consumer` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    consumer::main()
}
