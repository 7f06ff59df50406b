//! The `likesctl` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    consumer::cli::main()
}
