//! What every likestream program has in common: the [`like::Like`] itself, its bytes on the wire, where it
//! goes, and how a program starts, connects, tells how it is, and stops.
//!
//! Nothing here issues a Redis command or a SQL statement of the pipeline: that is the work of the programs.

pub mod admin;
pub mod agreement;
pub mod backlog;
pub mod cli;
pub mod codec;
pub mod config;
pub mod copy_format;
pub mod like;
pub mod partition;
pub mod pg;
pub mod redis;
pub mod service;
pub mod shutdown;
pub mod telemetry;
mod tls;
