//! Nothing but tests: see `integration/`.
