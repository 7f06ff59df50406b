//! The documents name what there is.

use std::{fs, path::Path};

/// ARCHITECTURE.md names the test that attacks each invariant: they must be there.
#[test]
fn the_tests_that_the_architecture_names_exist() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(folder.join("../ARCHITECTURE.md")).unwrap();
    let mut named = 0;
    for name in page.split('`').skip(1).step_by(2) {
        let Some((file, test)) = name.split_once("::") else { continue };
        let Ok(code) = fs::read_to_string(folder.join("integration").join(file).with_extension("rs")) else {
            continue;
        };
        if test.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
            && test.contains('_')
        {
            assert!(code.contains(&format!("fn {test}(")), "{name} is not there");
            named += 1;
        }
    }
    assert!(named >= 30, "{named}");
    for invariant in 1..=7 {
        assert!(page.contains(&format!("\n{invariant}. **")), "invariant {invariant}");
    }
}

/// The README's codes of problems are those of the code.
#[test]
fn the_problems_that_the_readme_lists_are_those_that_there_are() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(folder.join("../README.md")).unwrap();
    let code = fs::read_to_string(folder.join("../ingest/src/http/problem.rs")).unwrap();
    let mut codes = 0;
    for literal in code.split('"').skip(1).step_by(2) {
        let is_code = literal.contains('-') && literal.bytes().all(|b| b.is_ascii_lowercase() || b == b'-');
        if is_code || literal == "overloaded" || literal == "internal" {
            assert!(readme.contains(&format!("`{literal}`")), "{literal} is not in the README");
            codes += 1;
        }
    }
    assert!(codes >= 14, "{codes}");
}
