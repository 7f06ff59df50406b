//! Golden files of likesctl's output: every help text and table, and the shape of its JSON.

use std::{collections::BTreeSet, fmt::Write as _, fs};

use fred::prelude::{Client, StreamsInterface};
use serde_json::Value;
use shared::wire::codec;

use crate::{
    golden,
    harness::{GROUP, Setup, append_raw, dead_stream, like, run, stream},
    likesctl::{ctl, json, settled},
};

/// Returns a command and its subcommands, recursively.
fn commands(parent: &[String]) -> Vec<Vec<String>> {
    let mut arguments: Vec<&str> = parent.iter().map(String::as_str).collect();
    arguments.push("--help");
    let help = run("likesctl", &arguments, &[]);
    assert_eq!(help.code, Some(0), "{arguments:?}: {}", help.stderr);
    let listed = help.stdout.lines().skip_while(|line| *line != "Commands:").skip(1);
    let names = listed.take_while(|line| !line.is_empty()).filter(|line| !line.starts_with("   "));
    let names = names.filter_map(|line| line.split_whitespace().next());
    let mut all = vec![parent.to_vec()];
    for name in names.filter(|name| *name != "help") {
        all.extend(commands(&[parent, &[name.to_owned()]].concat()));
    }
    all
}

#[test]
fn help_texts_match_the_golden_file() {
    let mut text = String::new();
    let all = commands(&[]);
    assert!(all.len() >= 30, "{all:?}");
    for command in all {
        let mut arguments: Vec<&str> = command.iter().map(String::as_str).collect();
        arguments.push("--help");
        let help = run("likesctl", &arguments, &[("COLUMNS", "80")]).stdout;
        let is_family = help.contains("\nCommands:\n");
        assert!(is_family || help.contains("Example"), "{command:?} has no example");
        assert!(help.lines().all(|line| line.chars().count() <= 100), "{command:?}");
        writeln!(text, "$ likesctl {}\n{help}", arguments.join(" ")).unwrap();
    }
    golden::check("tests/integration/golden/help.txt", &text);
}

#[test]
fn completions_and_manual_pages_are_printed() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = run("likesctl", &["completions", shell], &[]);
        assert_eq!(script.code, Some(0));
        assert!(script.stdout.contains("min-deliveries"), "{shell}");
    }
    let page = run("likesctl", &["man"], &[]);
    assert!(page.stdout.contains(".TH likesctl"), "{}", page.stdout);
    let folder = tempfile::tempdir().unwrap();
    let pages = run("likesctl", &["man", "--out", folder.path().to_str().unwrap()], &[]);
    assert_eq!(pages.code, Some(0), "{}", pages.stderr);
    assert!(folder.path().join("likesctl-pending-drop.1").is_file());
}

/// Replaces ids, ages and other values that differ between runs, and collapses padding.
fn normalized(text: &str) -> String {
    let is_age = |word: &str| {
        let word = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
        let (first, last) = (word.bytes().next(), word.bytes().last());
        first.is_some_and(|b| b.is_ascii_digit())
            && last.is_some_and(|b| b"smh".contains(&b))
            && word.bytes().all(|b| b.is_ascii_digit() || b"dhms".contains(&b))
    };
    let mut lines = Vec::new();
    for line in text.lines() {
        let mut words: Vec<String> = Vec::new();
        for word in line.split(' ').filter(|word| !word.is_empty()) {
            if is_age(word) {
                let rest = word.trim_start_matches(|c: char| c.is_ascii_alphanumeric());
                words.push(format!("<age>{rest}"));
            } else if let Some((name, limits)) = word.split_once("ms;") {
                let name = name.trim_end_matches(|c: char| c.is_ascii_digit());
                words.push(format!("{name}<age>;{limits}"));
            } else {
                words.push(without_ids(word));
            }
        }
        let line = words.join(" ");
        // Versions and sizes of the servers.
        let of_servers = ["ok postgres", "ok version", "ok memory"];
        let check = of_servers.into_iter().find(|check| line.starts_with(check));
        lines.push(check.map_or(line, |check| format!("{check} <…>")));
    }
    lines.join("\n") + "\n"
}

/// Replaces ids, times and ports.
fn without_ids(word: &str) -> String {
    if let Some(at) = word.find("127.0.0.1:") {
        return format!("{}<server>", &word[..at]);
    }
    if word.len() >= 24 && word.as_bytes()[4] == b'-' && word.contains('T') && word.contains('Z') {
        return "<time>".to_owned();
    }
    let is_id = |part: &str| {
        let (ms, seq) = part.split_once('-').unwrap_or((part, "0"));
        ms.len() == 13 && [ms, seq].iter().all(|part| part.bytes().all(|b| b.is_ascii_digit()))
    };
    let core = word.trim_end_matches([',', '.', ':', ')']);
    let (before, id) = core.rsplit_once('/').map_or(("", core), |(before, id)| (before, id));
    if !is_id(id) {
        return word.to_owned();
    }
    let slash = if before.is_empty() { "" } else { "/" };
    format!("{before}{slash}<id>{}", &word[core.len()..])
}

/// Returns servers with pending entries, a lag and a dead letter, without live consumers.
async fn data_of_each_kind() -> (Setup, Client) {
    let (setup, redis) = settled().await;
    for user in 1..=3 {
        append_raw(&redis, 0, &codec::encode(&[like(user, 42)])).await;
    }
    for (consumer, count) in [("likestream-consumer-7f9c6d5b4-x2v8z-1-0a1b2c3d", 2), ("host-2", 1)] {
        redis
            .xreadgroup::<fred::prelude::Value, _, _, _, _>(
                GROUP,
                consumer,
                Some(count),
                None,
                false,
                stream(0),
                ">",
            )
            .await
            .unwrap();
    }
    append_raw(&redis, 1, &codec::encode(&[like(7, 42), like(8, 42)])).await;
    let dead_letter: Vec<(&str, bytes::Bytes)> = vec![
        ("origin", "likes:{2}/1700000000000-0".into()),
        ("deliveries", "1".into()),
        ("consumer", "host-2".into()),
        ("dead_at", "1700000000000".into()),
        ("l", codec::encode(&[like(9, 42)]).into()),
        ("reason", "rejected".into()),
        ("detail", "db error: ERROR: no such user".into()),
    ];
    redis
        .xadd::<String, _, _, _, _>(dead_stream(2), false, None::<()>, "1700000000001-0", dead_letter)
        .await
        .unwrap();
    let incident = "INSERT INTO likes_incidents (event, kind, streams, consumer_group, entries_lost, detail, detected_by)
                    VALUES ('an event', 'stream_lost', 'likes', 'likes-writers', 7, 'streams of partitions 0-3 vanished', 'host-2')";
    setup.postgres_client().await.batch_execute(incident).await.unwrap();
    (setup, redis)
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_match_the_golden_file() {
    let (setup, redis) = data_of_each_kind().await;
    let pending: (u64, String, String, fred::prelude::Value) =
        redis.xpending(stream(0), GROUP, ()).await.unwrap();
    let (entry, last) = (format!("0/{}", pending.1), format!("0/{}", pending.2));
    let mut text = String::new();
    for arguments in [
        &["status"][..],
        &["status", "-o", "wide"],
        &["status", "-p", "3"],
        &["status", "--check"],
        &["consumers", "list"],
        &["consumers", "list", "-o", "wide"],
        &["pending", "list"],
        &["pending", "list", "-o", "wide", "--limit", "1"],
        &["pending", "list", "--min-idle", "1h"],
        &["pending", "show", &entry],
        &["dead", "list"],
        &["dead", "list", "-o", "wide"],
        &["dead", "list", "--reason", "undecodable"],
        &["dead", "show", "2/1700000000001-0"],
        &["doctor"],
        &["verify"],
        &["group", "show"],
        &["incidents", "list"],
        &["audit"],
        &["pending", "retry", "--all", "--dry-run"],
        &["pending", "retry", &last, "--yes", "--reason-text", "a test"],
        &["dead", "retry", "--reason", "rejected", "--yes"],
        &["pause", "-p", "1", "--yes"],
        &["audit"],
        &["audit", "-o", "wide"],
    ] {
        let ended = ctl(&setup, arguments);
        let output = if ended.stderr.is_empty() {
            ended.stdout.clone()
        } else {
            format!("{}{}", ended.stderr, ended.stdout)
        };
        if !arguments.contains(&"wide") && !["doctor", "--check"].iter().any(|long| arguments.contains(long))
        {
            let widest = ended.stdout.lines().map(|line| line.chars().count()).max().unwrap_or(0);
            assert!(widest <= 110, "{arguments:?} needs {widest} columns");
        }
        text.push_str(&normalized(&format!(
            "$ likesctl {}\n{output}[{}]\n",
            arguments.join(" "),
            ended.code.unwrap()
        )));
        text.push('\n');
    }
    golden::check("tests/integration/golden/tables.txt", &text.replace(&hostname(), "<host>"));
}

fn hostname() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim().to_owned()
}

/// Replaces values by their types; an array keeps one element of each shape.
fn shape(value: &Value) -> Value {
    match value {
        Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), shape(value))).collect(),
        Value::Array(elements) => {
            let shapes: BTreeSet<String> =
                elements.iter().map(|element| shape(element).to_string()).collect();
            let shapes = shapes.iter().map(|shape| serde_json::from_str(shape).unwrap()).collect();
            Value::Array(shapes)
        }
        Value::Null => "null".into(),
        Value::Bool(_) => "bool".into(),
        Value::Number(_) => "number".into(),
        Value::String(_) => "string".into(),
    }
}

fn names(value: &Value, all: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, value)| {
            all.insert(name.clone());
            names(value, all);
        }),
        Value::Array(elements) => elements.iter().for_each(|element| names(element, all)),
        _ => {}
    }
}

/// Programs depend on the field names: new ones may be added, none may be removed.
#[tokio::test(flavor = "multi_thread")]
async fn json_output_has_the_documented_shape() {
    let (setup, redis) = data_of_each_kind().await;
    let pending: (u64, String, String, fred::prelude::Value) =
        redis.xpending(stream(0), GROUP, ()).await.unwrap();
    let entry = format!("0/{}", pending.1);
    let documented = include_str!("../../docs/likesctl.md");
    let mut text = String::new();
    for arguments in [
        &["status"][..],
        &["consumers", "list"],
        &["pending", "list"],
        &["pending", "show", &entry],
        &["dead", "list"],
        &["doctor"],
        &["verify"],
        &["group", "show"],
        &["group", "bind", "--yes"],
        &["group", "show"],
        &["incidents", "list"],
        &["incidents", "acknowledge", "--all", "--yes"],
        &["pending", "retry", &entry, "--yes"],
        &["pause", "--yes"],
        &["resume", "--yes"],
        &["consumers", "remove", "host-2", "--yes"],
        &["drain", "--timeout", "1ms"],
        &["audit"],
    ] {
        let output = json(&setup, &[arguments, &["-o", "json"]].concat());
        let mut all = BTreeSet::new();
        names(&output, &mut all);
        for name in &all {
            assert!(
                documented.contains(&format!("`{name}`")),
                "{arguments:?}: {name} is not in docs/likesctl.md"
            );
        }
        let output = serde_json::to_string_pretty(&shape(&output)).unwrap();
        let arguments = arguments.join(" ").replace(&entry, "<entry>");
        writeln!(
            text,
            "$ likesctl {arguments} -o json
{output}
"
        )
        .unwrap();
    }
    golden::check("tests/integration/golden/shapes.txt", &text);
    // NDJSON has the same fields.
    let lines = ctl(&setup, &["dead", "list", "-o", "ndjson"]).stdout;
    let line: Value = serde_json::from_str(lines.trim()).unwrap();
    assert_eq!(line["entry"], "2/1700000000001-0");
}
