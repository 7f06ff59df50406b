//! The commands: one file or folder per command, or per group of subcommands.
//!
//! Purpose: parse the options of a command, and run it. May depend on every other module of this crate. Must not know
//! each other: code that two commands share is outside (`verifier`, `reassign`, `pending_detail`).

pub(crate) mod audit;
pub(crate) mod consumers;
pub(crate) mod container;
pub(crate) mod dead;
pub(crate) mod doctor;
pub(crate) mod drain;
pub(crate) mod group;
pub(crate) mod incidents;
pub(crate) mod migrate;
pub(crate) mod partitions;
pub(crate) mod pause;
pub(crate) mod pending;
pub(crate) mod reprocess;
pub(crate) mod shell;
pub(crate) mod status;
pub(crate) mod top;
pub(crate) mod verify;
