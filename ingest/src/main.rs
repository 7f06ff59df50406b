//! The `ingest` program. The code is in the library.

use std::process::ExitCode;

use mimalloc::MiMalloc;

/// Memory is often freed by a thread other than the one that allocated it; glibc's allocator takes a lock for that.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    ingest::main()
}
