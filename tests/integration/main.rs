//! The real programs against real servers. Each test has a private Redis and database; each file covers one behaviour.

#![expect(
    clippy::unwrap_used,
    clippy::float_cmp,
    reason = "a test fails by panicking, and counters are whole numbers"
)]

mod authentication;
mod batch;
mod bench;
mod certificates;
mod clocks;
mod cluster;
mod collector;
mod configuration;
mod consumer;
mod crash_points;
mod database_failures;
mod dead_letters;
mod devstack;
mod direct_copy;
mod documents;
mod golden;
mod group_binding;
mod growth;
mod harness;
mod hash_partitions;
mod http;
mod incidents;
mod ingest_tls;
mod large_entries;
mod least_privilege;
mod likesctl;
mod likesctl_foreign_data;
mod likesctl_golden;
mod likesctl_reference;
mod load;
mod migrations;
mod openapi;
mod overload;
mod ownership;
mod partial_writes;
mod pgbouncer;
mod pipeline;
mod postgres_connections;
mod proxy;
mod quotas;
mod recovery;
mod redis_ack;
mod redis_errors;
mod redis_failover;
mod runbook;
mod sentinels;
mod settings;
mod shutdown;
mod slow_connections;
mod start;
mod table;
mod telemetry;
mod tls;
mod tracing;
mod trimming;
mod workspace;
