//! The `ingest` program: all of it is in the library.

use std::process::ExitCode;

use mimalloc::MiMalloc;

/// Memory is often freed by another thread than the one that allocated it, and glibc's allocator takes locks for that.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    ingest::main()
}
