//! The lifecycle of a service.
//!
//! Purpose: start, wait for servers, handle signals, serve the admin port, flush telemetry, exit. May depend on `settings`
//! and `telemetry`. Must not know the work of the service.

pub mod admin;
pub mod reload;
pub mod service;
pub mod shutdown;
