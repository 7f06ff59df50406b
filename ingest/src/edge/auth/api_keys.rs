//! API keys of services. Only their hashes are stored.

use std::path::PathBuf;

use aws_lc_rs::{
    constant_time::verify_slices_are_equal,
    digest::{SHA256, SHA256_OUTPUT_LEN, digest},
};
use clap::Args;
use shared::{runtime::reload::ReloadRequests, settings::SettingError};

use super::{errors::InvalidCredential, principal::Principal};
use crate::edge::hot_reload::HotReload;

/// Maximum number of keys. Every request is compared with all of them.
const MAX_KEYS: usize = 1_000;

#[derive(Args, Debug)]
pub(super) struct ApiKeysArgs {
    /// Path of a file with the hashes of API keys; required for api-key
    ///
    /// One line per service, with its name and the SHA-256 hash of its key in hex. Reloaded when it changes.
    #[arg(long, env = "INGEST_API_KEYS_FILE", value_name = "FILE")]
    ingest_api_keys_file: Option<PathBuf>,
}

impl ApiKeysArgs {
    pub(super) fn check(&self, wanted: bool) -> Result<(), SettingError> {
        match (wanted, &self.ingest_api_keys_file) {
            (true, None) => Err(SettingError::new(
                "INGEST_API_KEYS_FILE",
                "required with INGEST_AUTH=api-key; set it to the path of a file",
            )),
            (false, Some(_)) => Err(SettingError::new(
                "INGEST_API_KEYS_FILE",
                "has no effect without INGEST_AUTH=api-key; unset it or add api-key to INGEST_AUTH",
            )),
            _ => Ok(()),
        }
    }
}

/// Hashes of all keys. Keys are random, so a fast hash is sufficient.
pub(super) struct ApiKeys {
    hashes: HotReload<Vec<[u8; SHA256_OUTPUT_LEN]>>,
}

impl ApiKeys {
    pub(super) fn load(args: &ApiKeysArgs, reload: &ReloadRequests) -> Result<Self, SettingError> {
        let files = args.ingest_api_keys_file.iter().map(|file| ("INGEST_API_KEYS_FILE", file.clone()));
        let hashes = HotReload::load(files.collect(), reload, |contents| parse(&contents.concat()))?;
        Ok(Self { hashes })
    }

    /// Verifies a key in constant time, so that response times reveal nothing about the stored hashes.
    pub(super) fn verify(&self, key: &[u8]) -> Result<Principal, InvalidCredential> {
        let hash = digest(&SHA256, key);
        let is_known =
            self.hashes.current().iter().fold(false, |known, expected| {
                verify_slices_are_equal(hash.as_ref(), expected).is_ok() | known
            });
        if is_known { Ok(Principal::Trusted) } else { Err(InvalidCredential::ApiKey) }
    }
}

/// Parses lines with a name and a hash. Empty lines and comments (`#`) are ignored.
fn parse(file: &[u8]) -> Result<Vec<[u8; SHA256_OUTPUT_LEN]>, String> {
    let text = str::from_utf8(file).map_err(|_| "the file is not UTF-8 text".to_owned())?;
    let lines = (1..).zip(text.lines().map(str::trim));
    // A cut in a name or a hash leaves an invalid line, but a cut in a comment is visible only here.
    let last = lines.clone().last().filter(|(_, line)| line.starts_with('#') && !text.ends_with('\n'));
    if let Some((number, _)) = last {
        return Err(format!(
            "line {number} is a comment without a line break, so lines after it may be missing; end it with a line break"
        ));
    }
    let mut hashes = Vec::new();
    for (number, line) in lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
        let hash = match line.split_whitespace().collect::<Vec<_>>()[..] {
            [_, hash] => from_hex(hash),
            _ => None,
        };
        let wrong = || {
            format!(
                "line {number} is not valid; expected a name and the SHA-256 hash of a key in 64 hex digits"
            )
        };
        let hash = hash.ok_or_else(wrong)?;
        if digest(&SHA256, b"").as_ref() == hash {
            return Err(format!("line {number} has the hash of an empty key; set the hash of a random key"));
        }
        hashes.push(hash);
    }
    if hashes.is_empty() {
        return Err("the file has no keys; expected at least one".to_owned());
    }
    if hashes.len() > MAX_KEYS {
        return Err(format!("the file has {} keys; expected at most {MAX_KEYS}", hashes.len()));
    }
    Ok(hashes)
}

fn from_hex(text: &str) -> Option<[u8; SHA256_OUTPUT_LEN]> {
    let mut bytes = [0; SHA256_OUTPUT_LEN];
    if text.len() != 2 * bytes.len() || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_files_hold_a_name_and_a_hash_per_line() {
        let hash = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let expected = digest(&SHA256, b"abc");
        let file = format!("# services\n\n  shop   {hash}  \nother {}\r\n", hash.to_uppercase());
        let hashes = parse(file.as_bytes()).unwrap();
        assert_eq!(hashes, [expected.as_ref(), expected.as_ref()]);
        let of_nothing = "shop e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert!(parse(b"").is_err() && parse(b"# none\n").is_err() && parse(of_nothing.as_bytes()).is_err());
        for (bad, line) in [("abc", 1), ("# x\nshop abc", 2), (&format!("shop {hash} more"), 1)] {
            let why = parse(bad.as_bytes()).unwrap_err();
            assert!(why.contains(&format!("line {line} ")) && !why.contains("abc"), "{why}");
        }
        assert!(parse(&format!("x {hash}\n").repeat(MAX_KEYS + 1).into_bytes()).is_err());
    }

    #[test]
    fn a_file_that_ends_within_a_line_is_refused() {
        let hash = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let file = format!("shop {hash}\n# the old key, until May\nother {hash}\n");
        let starts: Vec<usize> = file.match_indices('\n').map(|(at, _)| at + 1).chain([0]).collect();
        for end in 0..file.len() {
            // Without its line break, a line with a key is complete.
            let is_complete = end > 0 && (starts.contains(&end) || file[..end].ends_with(hash));
            assert_eq!(parse(&file.as_bytes()[..end]).is_ok(), is_complete, "{}", &file[..end]);
        }
    }
}
