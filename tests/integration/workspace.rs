//! Rules for all crates and builds.

use std::{fs, path::Path};

fn read(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// `forbid` makes the compiler refuse `unsafe` in every crate. An attribute in the code cannot override it.
#[test]
fn every_crate_forbids_unsafe_code() {
    let workspace = read("Cargo.toml");
    assert!(workspace.contains("[workspace.lints.rust]\nunsafe_code = \"forbid\"\n"));
    let members = workspace.lines().find_map(|line| line.strip_prefix("members = ")).unwrap();
    let members: Vec<&str> = members.split('"').skip(1).step_by(2).collect();
    assert!(members.len() >= 6, "{members:?}");
    for member in members {
        let manifest = read(&format!("{member}/Cargo.toml"));
        assert!(manifest.contains("[lints]\nworkspace = true\n"), "{member}");
    }
    // The fuzz crate is not a member of the workspace.
    assert!(read("tests/fuzz/Cargo.toml").contains("[lints.rust]\nunsafe_code = \"forbid\"\n"));
}

/// Every build and test uses the versions in Cargo.lock.
#[test]
fn cargo_is_always_called_with_locked() {
    let resolving = ["build", "test", "clippy", "install", "metadata", "tree", "run", "doc"];
    let mut calls = 0;
    for file in ["Makefile", ".ci/run", "deploy/cargo_tool.sh", "deploy/sbom.sh", "tests/supply_chain.sh"] {
        for line in read(file).lines().filter(|line| !line.trim_start().starts_with('#')) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let called =
                words.windows(2).filter(|pair| pair[0].ends_with("cargo") || pair[0].ends_with("$(CARGO)"));
            for call in called.filter(|pair| resolving.contains(&pair[1])) {
                assert!(line.contains("--locked"), "{file}: {call:?} in {line}");
                calls += 1;
            }
        }
    }
    assert!(calls >= 8, "{calls}");
}
