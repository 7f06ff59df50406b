//! Metrics and logs, compared with their documentation.

use std::{collections::BTreeSet, time::Instant};

use bytes::Bytes;
use devstack::{http_client::HttpClient, program::Program};
use http_body_util::Full;
use hyper::Request;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;

use crate::{
    collector::{Collector, attributes},
    harness::{PARTITIONS, SOON, Setup, append_raw, eventually, like, likes, post, run},
};

/// Row of a table in docs/metrics.md.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Metric {
    name: String,
    kind: String,
    labels: BTreeSet<String>,
}

/// Rows of the tables under these headings, and their OpenTelemetry names.
fn documented(headings: &[&str]) -> (BTreeSet<String>, Vec<Metric>) {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md")).unwrap();
    let (mut otel_names, mut metrics, mut heading) = (BTreeSet::new(), Vec::new(), "");
    for line in text.lines() {
        heading = line.strip_prefix("## ").unwrap_or(heading);
        let Some(row) = line.strip_prefix("| `") else { continue };
        if !headings.contains(&heading) {
            continue;
        }
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let quoted =
            |cell: &str| -> Vec<String> { cell.split('`').skip(1).step_by(2).map(str::to_owned).collect() };
        let name = cells[0].split('`').next().unwrap().to_owned();
        otel_names.extend(cells[0].split('`').nth(2).map(str::to_owned));
        metrics.push(Metric {
            name,
            kind: cells[1].to_owned(),
            labels: quoted(cells[2]).into_iter().collect(),
        });
    }
    metrics.sort();
    (otel_names, metrics)
}

/// Metrics of `/metrics`, with all labels that occur.
fn shown(program: &Program) -> Vec<Metric> {
    let (_, text) = devstack::admin::get(program.admin(), "/metrics").unwrap();
    let types = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .map(|line| line.split_once(' ').unwrap());
    let mut metrics: Vec<Metric> = types
        .map(|(name, kind)| {
            let series = text.lines().filter_map(|line| {
                let rest = line.strip_prefix(name)?;
                let rest = ["_bucket", "_sum", "_count"]
                    .iter()
                    .find_map(|part| rest.strip_prefix(part))
                    .unwrap_or(rest);
                rest.strip_prefix('{')?.rsplit_once('}').map(|(labels, _)| labels)
            });
            let labels =
                series.flat_map(|labels| labels.split("\",").filter_map(|label| label.split_once('=')));
            let labels = labels.map(|(label, _)| label.to_owned()).filter(|label| label != "le").collect();
            Metric { name: name.to_owned(), kind: kind.to_owned(), labels }
        })
        .collect();
    metrics.sort();
    metrics
}

fn assert_documented(shown: &[Metric], headings: &[&str], may_be_absent: &[(&str, &str)]) {
    let (_, documented) = documented(headings);
    let names = |metrics: &[Metric]| metrics.iter().map(|metric| metric.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(shown), names(&documented));
    for (shown, documented) in shown.iter().zip(&documented) {
        assert_eq!(shown.kind, documented.kind, "{}", shown.name);
        if shown.name == "target_info" {
            continue;
        }
        let unsaid: Vec<_> = shown.labels.difference(&documented.labels).collect();
        assert!(unsaid.is_empty(), "{} has labels that docs/metrics.md has not: {unsaid:?}", shown.name);
        for label in documented.labels.difference(&shown.labels) {
            assert!(may_be_absent.contains(&(&shown.name, label)), "{} has no label {label}", shown.name);
        }
    }
}

/// Triggers every event that is counted.
#[tokio::test(flavor = "multi_thread")]
async fn documented_metrics_match_exported_metrics() {
    let mut setup = Setup::with_own_postgres(&[]);
    let collector = Collector::start().await;
    let url = collector.url();
    let export = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", url.as_str()),
        ("OTEL_METRIC_EXPORT_INTERVAL", "300ms"),
        ("OTEL_TRACES_EXPORTER", "none"),
    ];
    let client = setup.redis_client().await;
    append_raw(&client, 0, b"nonsense").await;
    let settings = [&export[..], &[("REDIS_TIMEOUT", "1s")]].concat();
    let (consumer, ingest) = (setup.consumer(&settings), setup.ingest(&settings));
    assert_eq!(post(&ingest, r#"{"user_id": 7, "post_id": 42}"#).await.status, 202);
    assert_eq!(post(&ingest, "nonsense").await.status, 400);
    let get = Request::get("/nothing").body(Full::default()).unwrap();
    assert_eq!(HttpClient::new(ingest.listen()).send(get).await.unwrap().status, 404);
    setup.wait_for_rows(1).await;
    let sum = |program: &Program, name: &str| program.metrics().unwrap().sum(name);
    eventually("trimmed", async || sum(&consumer, "likestream_entries_trimmed_total") >= 1.0).await;
    // Known rows, which need a staged copy.
    for round in 0..2 {
        setup.append(&likes(200), 10).await;
        eventually("stored", async || {
            sum(&consumer, "likestream_likes_deduplicated_total") >= 200.0 * f64::from(round)
        })
        .await;
    }
    setup.redis.pause();
    assert_eq!(post(&ingest, r#"{"user_id": 9, "post_id": 42}"#).await.status, 503);
    let timed = "messaging_client_operation_duration_seconds_count";
    eventually("commands to Redis fail", async || {
        consumer.metrics().unwrap().sum_where(timed, "error_type=") >= 1.0
    })
    .await;
    setup.redis.resume();
    setup.postgres().stop();
    setup.append(&[like(8, 43)], 1).await;
    eventually("failed", async || sum(&consumer, "likestream_batches_failed_total") >= 1.0).await;
    setup.postgres().start_again().unwrap();
    eventually("dead letters", async || sum(&consumer, "likestream_partition_dead_letters") >= 1.0).await;
    assert_documented(
        &shown(&ingest),
        &["Both", "Ingest"],
        &[("likestream_backlog_entries", "messaging_consumer_group_name")],
    );
    // An unreachable server returns no status code.
    let gone = [("db_client_operation_duration_seconds", "db_response_status_code")];
    assert_documented(&shown(&consumer), &["Both", "Consumer"], &gone);

    // The collector receives the same metrics.
    let (names, _) = documented(&["Both", "Ingest", "Consumer"]);
    let exported = || collector.metrics().into_iter().map(|metric| metric.name).collect::<BTreeSet<_>>();
    eventually("all are exported", async || exported().len() >= names.len()).await;
    assert_eq!(exported(), names);
    assert_eq!(entry_count(&collector), usize::from(PARTITIONS));
}

/// Number of partitions with a backlog metric.
fn entry_count(collector: &Collector) -> usize {
    let partitions = collector
        .metrics()
        .into_iter()
        .filter(|metric| metric.name == "likestream.partition.backlog.entries");
    let points = partitions.flat_map(|metric| match metric.data {
        Some(Data::Gauge(gauge)) => gauge.data_points,
        other => panic!("{other:?}"),
    });
    points.map(|point| attributes(&point.attributes)["partition"].clone()).collect::<BTreeSet<_>>().len()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_consumer_reports_the_total_backlog() {
    let setup = Setup::new().await;
    let first = setup.consumer(&[("CONSUMER_NAME", "first")]);
    let second = setup.consumer(&[("CONSUMER_NAME", "second")]);
    eventually("shared", async || {
        [&first, &second].iter().all(|c| c.metrics().unwrap().sum("likestream_partitions_owned") == 2.0)
    })
    .await;
    let paused = run(
        "likesctl",
        &["pause", "--yes"],
        &[("REDIS_URL", &setup.redis.url()), ("DATABASE_URL", &setup.database_url())],
    );
    assert_eq!(paused.code, Some(0), "{}", paused.stderr);
    eventually("paused", async || {
        [&first, &second].iter().all(|c| c.metrics().unwrap().sum("likestream_partitions_paused") == 2.0)
    })
    .await;
    setup.append(&likes(40), 1).await;
    for consumer in [&first, &second] {
        eventually("the total", async || {
            let group = "messaging_consumer_group_name=\"likes-writers\"";
            consumer.metrics().unwrap().sum_where("likestream_backlog_entries", group) == 40.0
        })
        .await;
        let metrics = consumer.metrics().unwrap();
        assert_eq!(metrics.sum("likestream_partition_backlog_entries"), 20.0);
        assert!(metrics.sum("likestream_partition_oldest_age_seconds") > 0.0);
        assert_eq!(metrics.sum("likestream_partition_pending_entries"), 0.0);
    }
    // Without a response from Redis, the metric is absent.
    setup.redis.pause();
    eventually("unknown", async || !first.metrics().unwrap().has("likestream_backlog_entries")).await;
    setup.redis.resume();
    eventually("known again", async || first.metrics().unwrap().sum("likestream_backlog_entries") == 40.0)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_level_can_be_changed_at_runtime() {
    let setup = Setup::without_schema(&[]).await;
    let ingest = setup.ingest(&[]);
    let mut admin = HttpClient::new(ingest.admin());
    let mut ask = async |method: &str, body: &str| {
        let request = Request::builder().method(method).uri("/loglevel");
        let response =
            admin.send(request.body(Full::new(Bytes::from(body.to_owned()))).unwrap()).await.unwrap();
        (response.status.as_u16(), String::from_utf8(response.body.to_vec()).unwrap())
    };
    let refused = async || {
        assert_eq!(post(&ingest, "nonsense").await.status, 400);
    };
    assert_eq!(ask("GET", "").await, (200, "info\n".to_owned()));
    refused().await;
    assert!(!ingest.log_text().contains("refused"), "{}", ingest.log_text());
    assert_eq!(ask("PUT", "info,ingest=debug\n").await.0, 200);
    assert!(ask("GET", "").await.1.contains("ingest=debug"));
    refused().await;
    eventually("the refused request is logged", async || ingest.log_text().contains("refused")).await;
    let (status, why) = ask("PUT", "loud").await;
    assert!(status == 400 && why.contains("'loud' is not valid; expected a level"), "{why}");
    assert_eq!(ask("PUT", &"x".repeat(5_000)).await.0, 413);
    assert_eq!(ask("DELETE", "").await, (200, "info\n".to_owned()));
    assert_eq!(ask("POST", "info").await.0, 405);
    for nothing in ["", " ", ",", "info\nx=debug"] {
        assert_eq!(ask("PUT", nothing).await.0, 400, "{nothing:?}");
    }
    // The filter must not compile regular expressions from a request.
    let endless = "info,[{x=(a|b)*a(a|b)(a|b)(a|b)(a|b)(a|b)(a|b)(a|b)(a|b)(a|b)(a|b)(a|b)(a|b)(a|b)(a|b)(a|b)(a|b)(a|b)(a|b)(a|b)(a|b)(a|b)}]=info";
    let asked = Instant::now();
    ask("PUT", endless).await;
    assert_eq!(ask("DELETE", "").await.0, 200);
    assert!(asked.elapsed() < SOON, "{:?}", asked.elapsed());
    assert_eq!(ingest.log_text().matches("log level changed").count(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_dead_letters_does_not_flood_the_log() {
    let setup = Setup::new().await;
    let client = setup.redis_client().await;
    for number in 0..2_000_u16 {
        append_raw(&client, number % PARTITIONS, b"nonsense").await;
    }
    let started = Instant::now();
    let consumer = setup.consumer(&[("BATCH_ROWS", "1"), ("LOG_FORMAT", "json")]);
    eventually("all dead", async || {
        consumer.metrics().unwrap().sum("likestream_dead_letters_total") == 2_000.0
    })
    .await;
    let seconds = usize::try_from(started.elapsed().as_secs()).unwrap();
    let log = consumer.log_text();
    let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let reported: Vec<u64> = lines
        .iter()
        .filter(|line| line["message"] == "dead letters written")
        .map(|line| line["dead_letters"].as_u64().unwrap())
        .collect();
    assert!((1..=seconds + 2).contains(&reported.len()), "{log}");
    assert!(reported.iter().sum::<u64>() <= 2_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn likesctl_ready_checks_readiness_and_idle_ends_on_sigterm() {
    let setup = Setup::without_schema(&[]).await;
    setup.redis.pause();
    let mut ingest = setup.start("ingest", &[]);
    let address = ingest.admin().to_string();
    let not_ready = run("likesctl", &["ready", &address], &[]);
    let report = "[-] redis failed: not checked yet\nnot ready\n";
    assert_eq!((not_ready.code, not_ready.stdout.as_str()), (Some(1), report));
    setup.redis.resume();
    eventually("ready", async || run("likesctl", &["ready", &address], &[]).code == Some(0)).await;
    let ready = run("likesctl", &["ready", &address], &[]);
    assert_eq!((ready.code, ready.stdout.as_str()), (Some(0), "[+] redis ok\nready\n"));
    let listen = ingest.listen().to_string();
    let wrong = run("likesctl", &["ready", &listen], &[]);
    assert!(wrong.code == Some(1) && wrong.stderr.contains("not an admin port"), "{}", wrong.stderr);
    assert_eq!(ingest.terminate(SOON).unwrap().code(), Some(0));
    let gone = run("likesctl", &["ready", &address], &[]);
    assert!(gone.code == Some(1) && gone.stderr.contains("no response from"), "{}", gone.stderr);
    assert_eq!(gone.stderr.lines().count(), 1);

    let mut idle = devstack::program::command("likesctl", &[]).unwrap().arg("idle").spawn().unwrap();
    let status = format!("/proc/{}/status", idle.id());
    eventually("the process handles SIGTERM", async || {
        let status = std::fs::read_to_string(&status).unwrap();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
        u64::from_str_radix(caught.trim(), 16).unwrap() & 1 << (nix::sys::signal::Signal::SIGTERM as i32 - 1)
            != 0
    })
    .await;
    assert!(idle.try_wait().unwrap().is_none());
    let pid = nix::unistd::Pid::from_raw(idle.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(idle.wait().unwrap().code(), Some(0));
}
