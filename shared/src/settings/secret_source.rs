//! Secrets that come from a setting or from a file.

use std::{
    fmt::Display,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use secrecy::{ExposeSecret, SecretString};
use tokio::time::sleep;

use crate::settings::SettingError;

/// Maximum size of a file. Longer files are no URLs.
const MAX_FILE_BYTES: u64 = 64 << 10;

/// Time for which a file must not have changed before a running program uses it: it may be half-written.
const SETTLE_TIME: Duration = Duration::from_millis(500);

/// Maximum number of waits for a file that changes.
const MAX_WAITS: usize = 10;

/// A secret: the value of a setting, or the file that another setting names. A file can be replaced while the program runs, so
/// it is read again for each use.
#[derive(Clone, Debug)]
pub struct SecretSource {
    /// The environment variable that was set.
    setting: &'static str,
    origin: Origin,
}

#[derive(Clone, Debug)]
enum Origin {
    Value(SecretString),
    File(PathBuf),
}

impl SecretSource {
    /// The secret is in the file if one is set.
    pub(crate) fn new(
        (setting, value): (&'static str, &SecretString),
        (file_setting, file): (&'static str, Option<&PathBuf>),
    ) -> Self {
        match file {
            Some(file) => Self { setting: file_setting, origin: Origin::File(file.clone()) },
            None => Self { setting, origin: Origin::Value(value.clone()) },
        }
    }

    /// Returns the secret without white space around it. Reads the file at once, as at the start of a program.
    ///
    /// # Errors
    /// When the file cannot be read, or is empty.
    pub fn read(&self) -> Result<SecretString, SettingError> {
        match &self.origin {
            Origin::Value(value) => Ok(value.expose_secret().trim().into()),
            Origin::File(file) => {
                let text = read_text(file)
                    .map_err(|why| self.invalid(format_args!("cannot read {}: {why}", file.display())))?;
                if text.expose_secret().is_empty() {
                    let why = format_args!("{} is empty; expected a URL in this file", file.display());
                    return Err(self.invalid(why));
                }
                Ok(text)
            }
        }
    }

    /// Returns the secret as [`Self::read`] does. Waits while the file is being written.
    ///
    /// # Errors
    /// When the file cannot be read, is empty, or does not stop changing.
    pub async fn read_settled(&self) -> Result<SecretString, SettingError> {
        if let Origin::File(file) = &self.origin {
            let mut waits = 0;
            while let Some(rest) = unsettled_for(file) {
                waits += 1;
                if waits > MAX_WAITS {
                    let why =
                        format_args!("{} does not stop changing; replace it by renaming", file.display());
                    return Err(self.invalid(why));
                }
                sleep(rest).await;
            }
        }
        self.read()
    }

    /// Returns the error of a secret that was read and is not valid. `problem` must not contain the secret.
    pub fn error(&self, problem: impl Display) -> SettingError {
        match &self.origin {
            Origin::Value(_) => self.invalid(problem),
            Origin::File(file) => self.invalid(format_args!("{}: {problem}", file.display())),
        }
    }

    fn invalid(&self, problem: impl Display) -> SettingError {
        SettingError::new(self.setting, problem)
    }
}

fn read_text(file: &Path) -> io::Result<SecretString> {
    let mut text = String::new();
    File::open(file)?.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other(format!("longer than {} KiB", MAX_FILE_BYTES >> 10)));
    }
    Ok(text.trim().into())
}

/// Returns the rest of [`SETTLE_TIME`], or `None` if it has passed. A time in the future is that of another clock.
fn unsettled_for(file: &Path) -> Option<Duration> {
    let modified = fs::metadata(file).ok()?.modified().ok()?;
    let age = SystemTime::now().duration_since(modified).ok()?;
    SETTLE_TIME.checked_sub(age).filter(|rest| !rest.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(file: &Path) -> SecretSource {
        SecretSource::new(("URL", &"unused".into()), ("URL_FILE", Some(&file.to_owned())))
    }

    fn text(read: Result<SecretString, SettingError>) -> String {
        read.map_or_else(|error| error.to_string(), |secret| secret.expose_secret().to_owned())
    }

    #[test]
    fn a_replaced_file_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("url");
        let source = source(&file);
        fs::write(&file, "one\n").unwrap();
        assert_eq!(text(source.read()), "one");
        fs::write(folder.path().join("next"), "two").unwrap();
        fs::rename(folder.path().join("next"), &file).unwrap();
        assert_eq!(text(source.read()), "two");
        assert!(!format!("{source:?}").contains("two"));
    }

    #[test]
    fn an_error_names_the_setting_and_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("url");
        let (source, shown) = (source(&file), file.display());
        assert_eq!(
            text(source.read()),
            format!("URL_FILE: cannot read {shown}: No such file or directory (os error 2)")
        );
        fs::write(&file, " \n").unwrap();
        assert_eq!(text(source.read()), format!("URL_FILE: {shown} is empty; expected a URL in this file"));
        fs::write(&file, "x".repeat(65 << 10)).unwrap();
        assert_eq!(text(source.read()), format!("URL_FILE: cannot read {shown}: longer than 64 KiB"));
        assert_eq!(source.error("not valid").to_string(), format!("URL_FILE: {shown}: not valid"));
        let value = SecretSource::new(("URL", &" one\n".into()), ("URL_FILE", None));
        assert_eq!(text(value.read()), "one");
        assert_eq!(value.error("not valid").to_string(), "URL: not valid");
    }

    #[tokio::test]
    async fn a_half_written_file_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("url");
        let source = source(&file);
        fs::write(&file, "").unwrap();
        let write = async {
            sleep(SETTLE_TIME / 3).await;
            fs::write(&file, "half").unwrap();
            sleep(SETTLE_TIME / 3).await;
            fs::write(&file, "whole").unwrap();
        };
        let (read, ()) = tokio::join!(source.read_settled(), write);
        assert_eq!(text(read), "whole");
    }
}
