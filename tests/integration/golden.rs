//! Generated texts that are committed: golden files, and the generated parts of pages. After an intended change, run
//! `UPDATE_GOLDEN=1 cargo test --release -p likestream-tests --test integration -- golden configuration likesctl_reference openapi`
//! and review the difference.

use std::{env, fs, path::PathBuf};

fn path(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(file)
}

/// Compares a text with a committed file of the repository, which `UPDATE_GOLDEN` writes first.
pub(crate) fn check(file: &str, text: &str) {
    let path = path(file);
    if env::var_os("UPDATE_GOLDEN").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    let first = committed.lines().zip(text.lines()).find(|(committed, generated)| committed != generated);
    assert!(
        text == committed,
        "{file} is stale (UPDATE_GOLDEN=1 updates it), first difference: {first:?}:\n{text}"
    );
}

/// Compares a text with the part of a page between the markers of a region, which `UPDATE_GOLDEN` writes first.
pub(crate) fn check_region(file: &str, region: &str, text: &str) {
    let (begin, end) = (format!("<!-- generated: {region} -->\n"), format!("<!-- end: {region} -->\n"));
    let page = fs::read_to_string(path(file)).unwrap();
    let (before, rest) = page.split_once(&begin).unwrap();
    let (_, after) = rest.split_once(&end).unwrap();
    check(file, &format!("{before}{begin}{text}{end}{after}"));
}
