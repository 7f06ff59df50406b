//! Open file limit of the process, and the number of connections that it allows.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Open files reserved for everything except client connections: Redis, the admin port, certificates.
const RESERVED_FILES: usize = 200;

/// Raises the soft limit of open files as needed, and returns the number of connections that fit into it, at most `wanted`.
/// The usual soft limit is far too low: it is meant for programs that use select(2).
pub(crate) fn allowed_connections(wanted: usize) -> usize {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        let needed = u64::try_from(wanted + RESERVED_FILES).unwrap_or(u64::MAX).clamp(soft, hard);
        setrlimit(Resource::RLIMIT_NOFILE, needed, hard).map(|()| needed)
    });
    let allowed = match raised {
        Ok(files) => usize::try_from(files).unwrap_or(usize::MAX),
        Err(error) => {
            tracing::warn!(%error, "cannot read or raise the open file limit");
            return wanted;
        }
    };
    let connections = allowed.saturating_sub(RESERVED_FILES).max(1);
    if connections < wanted {
        tracing::warn!(
            open_files = allowed,
            connections,
            wanted,
            "open file limit allows fewer connections than INGEST_MAX_CONNECTIONS, raise it with ulimit -n or LimitNOFILE"
        );
    }
    connections.min(wanted)
}
