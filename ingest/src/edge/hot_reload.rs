//! Values parsed from files, and reloaded when the files change. Certificates and keys can be replaced without a restart.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use shared::{runtime::reload::ReloadRequests, settings::SettingError};
use tokio::{task::spawn_blocking, time::sleep};
use tokio_util::task::AbortOnDropHandle;

/// Interval at which the files are compared with the loaded contents.
const RELOAD_INTERVAL: Duration = Duration::from_secs(5);

/// Time for which changed contents must stay the same before they are used: they may be half-written.
const SETTLE_TIME: Duration = Duration::from_secs(1);

/// Maximum size of a file. Longer files are neither keys nor certificates.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Value of the latest contents that could be parsed.
pub(crate) struct HotReload<T> {
    current: Arc<ArcSwap<T>>,
    _watching: AbortOnDropHandle<()>,
}

impl<T: Send + Sync + 'static> HotReload<T> {
    /// Reads the files, each with its setting, and watches them; a request to reload has them read again at once. `parse`
    /// gets the contents in the same order. Its error is logged, so it must not contain any of the contents.
    pub(crate) fn load(
        files: Vec<(&'static str, PathBuf)>,
        reload: &ReloadRequests,
        parse: impl Fn(&[Vec<u8>]) -> Result<T, String> + Send + 'static,
    ) -> Result<Self, SettingError> {
        let setting = files.first().map_or("", |(setting, _)| *setting);
        let contents = read_all(&files)?;
        let parsed = parse(&contents).map_err(|why| SettingError::new(setting, why))?;
        let current = Arc::new(ArcSwap::from_pointee(parsed));
        let watching = watch(setting, files, contents, parse, Arc::clone(&current), reload.clone());
        Ok(Self { current, _watching: AbortOnDropHandle::new(tokio::spawn(watching)) })
    }

    pub(crate) fn current(&self) -> Arc<T> {
        self.current.load_full()
    }
}

/// Parses the files whenever their contents have changed, periodically and on request. If parsing fails, the current value stays.
async fn watch<T>(
    setting: &'static str,
    files: Vec<(&'static str, PathBuf)>,
    mut contents: Vec<Vec<u8>>,
    parse: impl Fn(&[Vec<u8>]) -> Result<T, String>,
    current: Arc<ArcSwap<T>>,
    mut reload: ReloadRequests,
) {
    let files = Arc::new(files);
    let mut refused: Option<String> = None;
    loop {
        tokio::select! {
            () = sleep(RELOAD_INTERVAL) => {}
            // The operator waits for the outcome, so an error is logged again.
            () = reload.requested() => refused = None,
        }
        let changed = match read_changed(&files, &contents).await {
            Ok(None) => continue,
            Ok(Some(read)) => parse(&read).map(|parsed| (read, parsed)),
            Err(error) => Err(error),
        };
        match changed {
            Ok((read, parsed)) => {
                refused = None;
                contents = read;
                current.store(Arc::new(parsed));
                tracing::info!(setting, "files reloaded");
            }
            // Logged once per error: another file of the same value may be replaced a moment later.
            Err(error) if refused.as_ref() != Some(&error) => {
                tracing::warn!(setting, error, "reload of changed files failed, keeping the old contents");
                refused = Some(error);
            }
            Err(_) => {}
        }
    }
}

type Files = Arc<Vec<(&'static str, PathBuf)>>;

/// Returns the contents once they no longer change, or `None` if they are the known ones.
async fn read_changed(files: &Files, known: &[Vec<u8>]) -> Result<Option<Vec<Vec<u8>>>, String> {
    let mut contents = read(files).await?;
    while contents != known {
        sleep(SETTLE_TIME).await;
        let later = read(files).await?;
        if later == contents {
            return Ok(Some(contents));
        }
        contents = later;
    }
    Ok(None)
}

async fn read(files: &Files) -> Result<Vec<Vec<u8>>, String> {
    let files = Arc::clone(files);
    let read = spawn_blocking(move || read_all(&files)).await;
    read.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}

fn read_all(files: &[(&'static str, PathBuf)]) -> Result<Vec<Vec<u8>>, SettingError> {
    let read = |path: &PathBuf| {
        let mut content = Vec::new();
        // Reading a pipe could block without end.
        if !fs::metadata(path)?.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut content)?;
        if content.len() as u64 > MAX_FILE_BYTES {
            return Err(io::Error::other(format!("the file has more than {MAX_FILE_BYTES} bytes")));
        }
        Ok(content)
    };
    files
        .iter()
        .map(|(setting, path)| {
            read(path)
                .map_err(|e| SettingError::new(*setting, format!("cannot read {}: {e}", path.display())))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    async fn wait_until(condition: impl Fn() -> bool) {
        while !condition() {
            sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_half_written_file_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("keys");
        let write = |content: &str| fs::write(&file, content).unwrap();
        write("one\ntwo\n");
        let lines = |contents: &[Vec<u8>]| Ok(String::from_utf8_lossy(&contents[0]).lines().count());
        let (_requests, reload) = ReloadRequests::new();
        let count = HotReload::load(vec![("KEYS", file.clone())], &reload, lines).unwrap();
        let half_a_second = SETTLE_TIME / 2;
        write("one\n");
        sleep(RELOAD_INTERVAL + half_a_second).await;
        assert_eq!(*count.current(), 2, "the writer has just begun");
        write("one\ntwo\nthree\n");
        sleep(SETTLE_TIME).await;
        assert_eq!(*count.current(), 2, "the file has just changed");
        sleep(SETTLE_TIME).await;
        assert_eq!(*count.current(), 3);
        write("one\n");
        sleep(RELOAD_INTERVAL + 2 * SETTLE_TIME).await;
        assert_eq!(*count.current(), 1, "the file stays so");
    }

    #[tokio::test(start_paused = true)]
    async fn changed_files_are_reloaded_at_once_on_request() {
        let path = std::env::temp_dir().join(format!("likestream-hot-reload-{}", std::process::id()));
        fs::write(&path, "old").unwrap();
        let (requests, reload) = ReloadRequests::new();
        let parse = |contents: &[Vec<u8>]| Ok(contents.concat());
        let files = HotReload::load(vec![("FILE", path.clone())], &reload, parse).unwrap();
        let started = Instant::now();
        for new in ["new", "newer"] {
            fs::write(&path, new).unwrap();
            requests.send_replace(());
            wait_until(|| *files.current() == new.as_bytes()).await;
        }
        assert!(started.elapsed() < RELOAD_INTERVAL);

        fs::write(&path, "newest").unwrap();
        wait_until(|| *files.current() == b"newest").await;
        assert!(started.elapsed() >= RELOAD_INTERVAL, "without a request");
        fs::remove_file(path).unwrap();
    }
}
