//! How many files, and so connections, the system lets us have.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// For all else than callers: Redis, the admin port, certificates.
const OTHERS: usize = 200;

/// Asks the system for as many open files as it may give, and tells how many connections fit into them, up to `wanted`. The
/// usual soft limit is for programs that still use select(2), and far too low for us.
pub(crate) fn room_for_connections(wanted: usize) -> usize {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        let needed = u64::try_from(wanted + OTHERS).unwrap_or(u64::MAX).clamp(soft, hard);
        setrlimit(Resource::RLIMIT_NOFILE, needed, hard).map(|()| needed)
    });
    let allowed = match raised {
        Ok(files) => usize::try_from(files).unwrap_or(usize::MAX),
        Err(error) => {
            tracing::warn!(%error, "the limit of open files is not known");
            return wanted;
        }
    };
    let room = allowed.saturating_sub(OTHERS).max(1);
    if room < wanted {
        tracing::warn!(
            open_files = allowed,
            connections = room,
            wanted,
            "the system allows fewer connections than INGEST_MAX_CONNECTIONS: raise its limit of open files (ulimit -n, LimitNOFILE)"
        );
    }
    room.min(wanted)
}
