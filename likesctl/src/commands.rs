//! One file per command, or per family of commands.

pub(crate) mod audit;
pub(crate) mod consumers;
pub(crate) mod container;
pub(crate) mod dead;
pub(crate) mod doctor;
pub(crate) mod migrate;
pub(crate) mod partitions;
pub(crate) mod pause;
pub(crate) mod pending;
pub(crate) mod reprocess;
pub(crate) mod shell;
pub(crate) mod status;
pub(crate) mod top;
pub(crate) mod verify;
