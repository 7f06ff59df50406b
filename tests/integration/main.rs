//! The real programs against real servers. Each test has a Redis and a database of its own; one file a behaviour.

#![expect(
    clippy::unwrap_used,
    clippy::float_cmp,
    reason = "a test fails by panicking, and counters are whole numbers"
)]

mod consumer;
mod crash_points;
mod database_failures;
mod dead_letters;
mod documents;
mod harness;
mod hash_partitions;
mod http;
mod local_stack;
mod migrations;
mod overload;
mod pgbouncer;
mod pipeline;
mod proxy;
mod recovery;
mod redis_ack;
mod settings;
mod shutdown;
mod trimming;
