//! The system limit of open files, and the number of connections that it allows.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Reserved for everything other than callers: Redis, the admin port, certificates.
const RESERVED_FILES: usize = 200;

/// Raises the soft limit of open files as far as needed, and returns how many connections fit into it, up to `wanted`. The usual
/// soft limit is meant for programs that use select(2), and far too low.
pub(crate) fn allowed_connections(wanted: usize) -> usize {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        let needed = u64::try_from(wanted + RESERVED_FILES).unwrap_or(u64::MAX).clamp(soft, hard);
        setrlimit(Resource::RLIMIT_NOFILE, needed, hard).map(|()| needed)
    });
    let allowed = match raised {
        Ok(files) => usize::try_from(files).unwrap_or(usize::MAX),
        Err(error) => {
            tracing::warn!(%error, "the limit of open files is not known");
            return wanted;
        }
    };
    let connections = allowed.saturating_sub(RESERVED_FILES).max(1);
    if connections < wanted {
        tracing::warn!(
            open_files = allowed,
            connections,
            wanted,
            "the system allows fewer connections than INGEST_MAX_CONNECTIONS: raise its limit of open files (ulimit -n, LimitNOFILE)"
        );
    }
    connections.min(wanted)
}
