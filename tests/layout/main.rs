//! Direction of dependencies between modules and crates, checked against the imports.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod graph;

use std::collections::{BTreeMap, BTreeSet};

use graph::{ModuleGraph, crate_graph};

/// Modules of each crate from top to bottom, one line per layer. A module may import only from lower layers.
const LAYERS: &[(&str, &[&[&str]])] = &[
    (
        "shared",
        &[
            &["cluster_settings"],
            &["backlog", "runtime"],
            &["redis", "postgres", "telemetry"],
            &["tls"],
            &["settings"],
            &["wire", "error_chain", "backoff", "stderr", "thousands"],
        ],
    ),
    (
        "consumer",
        &[
            &["lib"],
            &["service"],
            &["pipeline"],
            &["config", "read", "upkeep", "write"],
            &["group"],
            &["trace"],
            &["metrics"],
            &["stream"],
            &["store"],
            &["in_flight"],
            &["entry", "task"],
        ],
    ),
    (
        "ingest",
        &[&["lib"], &["run"], &["config"], &["http"], &["edge", "publish"], &["metrics"], &["backlog"]],
    ),
    (
        "likesctl",
        &[
            &["lib"],
            &["commands"],
            &["reassign"],
            &["action", "pending_detail", "verifier"],
            &["dead_letter_record"],
            &["scan"],
            &["audit", "database", "likes_table", "overview", "selection"],
            &["context", "output"],
            &["exit"],
        ],
    ),
];

/// Crates of this workspace, and the workspace crates on which each may depend.
const CRATES: &[(&str, &[&str])] = &[
    ("shared", &[]),
    ("ingest", &["shared"]),
    ("consumer", &["shared"]),
    ("likesctl", &["consumer", "shared"]),
    ("tests/stack", &["shared"]),
];

#[test]
fn modules_import_only_from_layers_below() {
    let mut wrong = Vec::new();
    for (name, layers) in LAYERS {
        let level: BTreeMap<&str, usize> =
            layers.iter().enumerate().flat_map(|(i, layer)| layer.iter().map(move |m| (*m, i))).collect();
        let graph = crate_graph(name);
        for (from, to, file) in graph.edges() {
            let (Some(upper), Some(lower)) = (level.get(from), level.get(to)) else {
                wrong.push(format!("{name}: {from} or {to} is in no layer"));
                continue;
            };
            if upper >= lower {
                wrong.push(format!("{name}: {from} imports {to}, in {file}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_module_is_in_a_layer() {
    for (name, layers) in LAYERS {
        let placed: BTreeSet<String> = layers.concat().into_iter().map(str::to_owned).collect();
        let mut there = crate_graph(name).modules();
        there.remove("main");
        if !placed.contains("lib") {
            there.remove("lib");
        }
        assert_eq!(there, placed, "{name}");
    }
}

#[test]
fn files_of_different_modules_have_no_import_cycles() {
    for (name, _) in CRATES {
        let graph = crate_graph(name);
        assert_eq!(graph.file_cycles_across_modules(), Vec::<Vec<String>>::new(), "{name}");
    }
}

#[test]
fn crates_depend_only_on_crates_below() {
    let bench: (&str, &[&str]) = ("bench", &["devstack", "ingest", "shared"]);
    for (name, allowed) in CRATES.iter().chain([&bench]) {
        let manifest = graph::read(&format!("{name}/Cargo.toml"));
        let normal = manifest.split("[dev-dependencies]").next().unwrap();
        let ours =
            normal.lines().filter_map(|line| line.strip_prefix("likestream-")?.split(['.', ' ']).next());
        for dependency in ours {
            assert!(allowed.contains(&dependency), "{name} depends on {dependency}");
        }
    }
}

/// Without this test, a checker that detects nothing would pass.
#[test]
fn a_wrong_import_is_detected() {
    let graph = ModuleGraph::of_sources(&[
        ("lib.rs", "mod a; mod b;"),
        ("a.rs", "use crate::b::{self, z::Z}; mod x;"),
        ("a/x.rs", "fn f() { super::y(); let _ = format!(\"{}\", f(crate::b::z::g())); }"),
        ("b.rs", "mod z; pub struct B;"),
        ("b/z.rs", "use super::super::{Root, a};"),
    ]);
    let edges: BTreeSet<(&str, &str)> = graph.edges().map(|(from, to, _)| (from, to)).collect();
    assert_eq!(edges, BTreeSet::from([("a", "b"), ("b", "a"), ("b", "lib")]));
    assert_eq!(graph.file_cycles_across_modules(), [["a.rs", "b/z.rs"]]);
}
