//! What is read from files and read again when they have changed, so that certificates and keys can be replaced
//! without a restart.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use shared::settings::SettingError;
use tokio::{task::spawn_blocking, time::sleep};
use tokio_util::task::AbortOnDropHandle;

/// How often the files are looked at.
const RELOAD_INTERVAL: Duration = Duration::from_secs(5);

/// Nobody's keys or certificates are longer.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// What the files said when they last made sense.
pub(crate) struct Reloaded<T> {
    current: Arc<ArcSwap<T>>,
    _following: AbortOnDropHandle<()>,
}

impl<T: Send + Sync + 'static> Reloaded<T> {
    /// Reads the files, each with the setting that names it, and follows them from now on. `parse` gets the contents
    /// in the same order. What it says of bad ones may be logged: it must not repeat them.
    pub(crate) fn load(
        files: Vec<(&'static str, PathBuf)>,
        parse: impl Fn(&[Vec<u8>]) -> Result<T, String> + Send + 'static,
    ) -> Result<Self, SettingError> {
        let setting = files.first().map_or("", |(setting, _)| *setting);
        let mut contents = read_all(&files)?;
        let parsed = parse(&contents).map_err(|why| SettingError::new(setting, why))?;
        let current = Arc::new(ArcSwap::from_pointee(parsed));
        let swapped = Arc::clone(&current);
        let files = Arc::new(files);
        let following = async move {
            let mut refused = None;
            loop {
                sleep(RELOAD_INTERVAL).await;
                let reading = Arc::clone(&files);
                let read = spawn_blocking(move || read_all(&reading)).await;
                let changed = match read {
                    Ok(Ok(read)) if read == contents => continue,
                    Ok(Ok(read)) => parse(&read).map(|parsed| (read, parsed)),
                    Ok(Err(error)) => Err(error.to_string()),
                    Err(error) => Err(error.to_string()),
                };
                match changed {
                    Ok((read, parsed)) => {
                        refused = None;
                        contents = read;
                        swapped.store(Arc::new(parsed));
                        tracing::info!(setting, "the files have changed and were read again");
                    }
                    // Perhaps one of several is still to come.
                    Err(why) if refused.as_ref() != Some(&why) => {
                        tracing::warn!(
                            setting,
                            why,
                            "the files have changed and can't be used: the old ones are kept"
                        );
                        refused = Some(why);
                    }
                    Err(_) => {}
                }
            }
        };
        Ok(Self { current, _following: AbortOnDropHandle::new(tokio::spawn(following)) })
    }

    pub(crate) fn current(&self) -> Arc<T> {
        self.current.load_full()
    }
}

fn read_all(files: &[(&'static str, PathBuf)]) -> Result<Vec<Vec<u8>>, SettingError> {
    let read = |path: &PathBuf| {
        let mut content = Vec::new();
        // A pipe might keep us waiting for ever.
        if !fs::metadata(path)?.is_file() {
            return Err(io::Error::other("it is no file"));
        }
        File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut content)?;
        if content.len() as u64 > MAX_FILE_BYTES {
            return Err(io::Error::other(format!("it has more than {MAX_FILE_BYTES} bytes")));
        }
        Ok(content)
    };
    files
        .iter()
        .map(|(setting, path)| {
            read(path)
                .map_err(|e| SettingError::new(*setting, format!("'{}' can't be read: {e}", path.display())))
        })
        .collect()
}
