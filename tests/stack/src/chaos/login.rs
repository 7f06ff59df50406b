//! User of a server whose password is rotated. Programs read it from a file, again for each connection.

use std::{fs, path::PathBuf};

use devstack::StackError;

/// User, its password, and the file with the URL of the server.
pub(crate) struct Login {
    user: &'static str,
    /// URL without a user.
    url: String,
    file: PathBuf,
    /// Number of the password that the server requires.
    number: u32,
}

impl Login {
    /// Writes the file with a first password. `url` has no user.
    pub(crate) fn create(user: &'static str, url: String, file: PathBuf) -> Result<Self, StackError> {
        let login = Self { user, url, file, number: 1 };
        login.write()?;
        Ok(login)
    }

    pub(crate) fn user(&self) -> &'static str {
        self.user
    }

    /// Path of the file, as a value of a setting.
    pub(crate) fn setting(&self) -> String {
        self.file.display().to_string()
    }

    /// Password that the server requires.
    pub(crate) fn password(&self) -> String {
        format!("secret-{}", self.number)
    }

    /// Chooses another password. The file keeps the former one.
    pub(crate) fn rotate(&mut self) {
        self.number += 1;
    }

    /// Replaces the file by one with the current password.
    pub(crate) fn write(&self) -> Result<(), StackError> {
        let Self { user, url, file, .. } = self;
        let password = self.password();
        let url = url.replacen("://", &format!("://{user}:{password}@"), 1);
        let next = file.with_extension("next");
        let replaced = fs::write(&next, url).and_then(|()| fs::rename(&next, file));
        replaced.map_err(StackError::io(format!("cannot write {}", file.display())))
    }
}
