//! `make bench` with minimal sizes: it must report every figure, whatever the values.

use std::{fs, process::Command};

use serde_json::Value;

/// One figure of each benchmark: row, case, measure.
const FIGURES: [(&str, &str, &str); 11] = [
    ("drain", "one like per entry, 4 writers", "likes/s"),
    ("drain", "packed, 2 writers, 5 % duplicates", "of the copy limit"),
    ("hot post", "2 writers", "of the rate for recent posts"),
    ("ingest", "512 connections", "of the HTTP limit"),
    ("ingest", "1000 likes/s", "p99.9 ms"),
    ("pipeline", "64 connections", "times the simple design's likes/s"),
    ("pipeline", "64 connections, batches of 100", "times the simple design's likes/s"),
    ("end to end", "10 % of capacity", "p99 ms"),
    ("telemetry", "frozen collector, all sampled", "of the likes/s stored without telemetry"),
    ("slow connections", "50 slow connections", "times the undisturbed p99"),
    ("growth", "key (user_id, post_id), 0.01 M rows", "of the rate into an empty table"),
];

#[test]
fn every_benchmark_reports_its_figures() {
    let out = tempfile::tempdir().unwrap();
    let program = devstack::program::programs_folder().unwrap().join("bench");
    let small = ["--runs", "1", "--likes", "10000", "--duration", "200ms", "--growth-rows", "10000"];
    let small = small.into_iter().chain(["--slow-connections", "50", "--out"]);
    let ended = Command::new(program).args(small).arg(out.path()).output().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));

    let results: Value = serde_json::from_slice(&fs::read(out.path().join("results.json")).unwrap()).unwrap();
    let figures = results["figures"].as_array().unwrap();
    for (row, case, measure) in FIGURES {
        let is_it =
            |figure: &&Value| figure["row"] == row && figure["case"] == case && figure["measure"] == measure;
        let figure = figures.iter().find(is_it).unwrap_or_else(|| panic!("{row}, {case}: {measure}"));
        assert!(figure["median"].as_f64().is_some_and(|median| median > 0.0), "{figure}");
        assert_eq!(figure["runs"].as_array().unwrap().len(), 1);
    }
    assert!(results["machine"]["cores"].as_u64().is_some_and(|cores| cores > 0));
    // The target of growth is for 20 M rows, and two of slow connections are for 5000 connections.
    assert_eq!(results["targets"].as_array().unwrap().len(), 23);
    let table = String::from_utf8(ended.stdout).unwrap();
    assert!(table.contains("target") && table.contains("of the HTTP limit"), "{table}");
    assert!(fs::read_to_string(out.path().join("results.svg")).unwrap().contains("of the copy limit"));
}

#[test]
fn invalid_arguments_are_reported_in_one_line() {
    let program = devstack::program::programs_folder().unwrap().join("bench");
    for arguments in [["--rows", "speed"], ["--runs", "0"], ["--growth-rows", "2,1"], ["--duration", "soon"]]
    {
        let ended = Command::new(&program).args(arguments).output().unwrap();
        assert_eq!(ended.status.code(), Some(2), "{arguments:?}");
        assert_eq!(String::from_utf8_lossy(&ended.stderr).lines().count(), 1, "{arguments:?}");
    }
}
