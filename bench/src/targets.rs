//! Targets, each with row, case, measure and bound.

use crate::figures::Bound::{self, AtLeast, AtMost};

pub(crate) const TARGETS: [(&str, &str, &str, Bound); 26] = [
    ("drain", "packed, 2 writers", "of the copy limit", AtLeast(0.65)),
    ("drain", "packed, 2 writers, 5 % duplicates", "of the copy limit", AtLeast(0.65)),
    ("drain", "packed, 2 writers", "consumer CPU s per million likes", AtMost(0.6)),
    ("drain", "one like per entry, 2 writers", "consumer CPU s per million likes", AtMost(3.0)),
    ("drain", "packed, 2 writers", "consumer peak resident MiB", AtMost(64.0)),
    ("drain", "one like per entry, 2 writers", "consumer peak resident MiB", AtMost(64.0)),
    ("ingest", "64 connections", "of the HTTP limit", AtLeast(0.75)),
    ("ingest", "512 connections", "of the HTTP limit", AtLeast(0.75)),
    ("ingest", "512 connections", "peak resident MiB", AtMost(64.0)),
    ("ingest", "64 connections", "Redis bytes per queued like", AtMost(40.0)),
    ("ingest", "512 connections", "Redis bytes per queued like", AtMost(40.0)),
    ("pipeline", "64 connections", "times the simple design's likes/s", AtLeast(10.0)),
    ("pipeline", "64 connections, batches of 100", "times the simple design's likes/s", AtLeast(10.0)),
    ("pipeline", "64 connections", "times the simple design's likes/s, from a backlog", AtLeast(10.0)),
    ("pipeline", "64 connections", "of the simple design's Postgres CPU", AtMost(0.1)),
    ("pipeline", "64 connections", "of the simple design's transactions", AtMost(1.0 / 500.0)),
    ("end to end", "10 % of capacity", "p99 ms", AtMost(50.0)),
    ("end to end", "50 % of capacity", "p99 ms", AtMost(250.0)),
    (
        "telemetry",
        "frozen collector, 1 % sampled",
        "of the likes/s accepted without telemetry",
        AtLeast(0.97),
    ),
    ("telemetry", "frozen collector, 1 % sampled", "of the likes/s stored without telemetry", AtLeast(0.97)),
    (
        "telemetry",
        "frozen collector, all sampled",
        "of the likes/s accepted without telemetry",
        AtLeast(0.97),
    ),
    ("telemetry", "frozen collector, all sampled", "of the likes/s stored without telemetry", AtLeast(0.97)),
    ("slow connections", "5000 slow connections", "times the undisturbed p99", AtMost(3.0)),
    ("slow connections", "5000 slow connections", "peak resident MiB", AtMost(200.0)),
    ("slow connections", "afterwards", "additional open files", AtMost(0.0)),
    ("growth", "key (post_id, user_id), 20 M rows", "of the rate into an empty table", AtLeast(0.7)),
];
