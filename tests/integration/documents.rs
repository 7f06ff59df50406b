//! Consistency of documents and code.

use std::{collections::BTreeSet, fs, path::Path};

/// Every test that ARCHITECTURE.md, docs/tests.md and the decision records name exists, and every invariant is a row of the table.
#[test]
fn every_test_named_in_the_architecture_exists() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let architecture = fs::read_to_string(folder.join("../ARCHITECTURE.md")).unwrap();
    let tests = fs::read_to_string(folder.join("../docs/tests.md")).unwrap();
    let mut pages = vec![architecture.clone(), tests];
    for record in fs::read_dir(folder.join("../docs/adr")).unwrap() {
        pages.push(fs::read_to_string(record.unwrap().path()).unwrap());
    }
    assert!(pages.len() > 20, "{} pages", pages.len());
    let mut named = BTreeSet::new();
    for name in pages.iter().flat_map(|page| page.split('`').skip(1).step_by(2)) {
        let Some((file, test)) = name.split_once("::") else { continue };
        let Ok(code) = fs::read_to_string(folder.join("integration").join(file).with_extension("rs")) else {
            continue;
        };
        if test.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
            && test.contains('_')
        {
            assert!(code.contains(&format!("fn {test}(")), "{name} does not exist");
            named.insert(name);
        }
    }
    assert!(named.len() >= 81, "{}", named.len());
    for invariant in 1..=8 {
        assert!(architecture.contains(&format!("\n| {invariant} | ")), "invariant {invariant}");
    }
}

/// docs/http-api.md lists exactly the problem codes of the code.
#[test]
fn problem_codes_are_documented() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(folder.join("../docs/http-api.md")).unwrap();
    let (_, table) = page.split_once("| code | status |").expect("a table of problem codes");
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let first_cells = rows.filter_map(|row| row.split('|').nth(1));
    let documented: BTreeSet<&str> =
        first_cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect();

    let code = fs::read_to_string(folder.join("../ingest/src/http/problem.rs")).unwrap();
    let (_, kinds) = code.split_once("\nkinds! {").expect("the table of problems");
    let kinds = kinds.lines().skip(1).take_while(|line| *line != "}");
    let defined: BTreeSet<&str> = kinds.filter_map(|row| row.split('"').nth(1)).collect();
    assert!(defined.len() >= 14, "{defined:?}");
    assert_eq!(documented, defined);
}

/// Every page of docs/ is a chapter of the book.
#[test]
fn every_page_is_in_the_book() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let summary = fs::read_to_string(docs.join("SUMMARY.md")).unwrap();
    let mut pages = 0;
    for folder in [".", "adr"] {
        for file in fs::read_dir(docs.join(folder)).unwrap() {
            let path = file.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.extension().is_some_and(|extension| extension == "md") && name != "SUMMARY.md" {
                let link = if folder == "." { name.to_owned() } else { format!("{folder}/{name}") };
                assert!(summary.contains(&format!("]({link})")), "{link} is not in docs/SUMMARY.md");
                pages += 1;
            }
        }
    }
    assert!(pages >= 20, "{pages}");
}
