//! Private Redis, Postgres and PgBouncer servers and the likestream programs, as ordinary processes on free ports.
//!
//! Purpose: start real servers for the demo, `make up`, chaos runs, benchmarks and integration tests, and make sure
//! that they end with the process that started them. May depend on `shared` and on the programs' executables. Must not
//! depend on the ingest, consumer or likesctl crates: it uses only settings, HTTP and metrics of the programs.
//!
//! Calls that start, stop or wait for a process block, with a time limit.

pub mod admin;
pub mod backlog;
mod error;
mod free_port;
pub mod http_client;
pub mod latency;
pub mod link;
pub mod pgbouncer_server;
pub mod postgres_server;
pub mod process;
pub mod program;
pub mod redis_cluster;
pub mod redis_sentinels;
pub mod redis_server;
pub mod signals;
pub mod slow_clients;
pub mod terminal;

pub use crate::{error::StackError, free_port::free_port};
