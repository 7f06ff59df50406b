//! Traces from the client through Redis to Postgres, as a collector receives them.

use std::collections::BTreeSet;

use bytes::Bytes;
use devstack::{http_client::HttpClient, program::Program};
use fred::prelude::{StreamsInterface, Value};
use futures_util::future::join_all;
use http_body_util::Full;
use hyper::Request;
use opentelemetry_proto::tonic::{
    metrics::v1::{AggregationTemporality, metric::Data},
    trace::v1::{Span, span::SpanKind, status::StatusCode},
};
use tokio::net::TcpListener;

use crate::{
    certificates::{Authority, HERE},
    collector::{Collector, Seen},
    harness::{PARTITIONS, SOON, Setup, entries, eventually, likes, post, run, stream},
};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

fn traced(body: &'static str, traceparent: &str) -> Request<Full<Bytes>> {
    let request = Request::post("/likes").header("content-type", "application/json");
    let request = request.header("traceparent", traceparent).header("tracestate", "vendor=caller");
    request.header("user-agent", "tests").body(Full::new(body.into())).unwrap()
}

async fn like(ingest: &Program, traceparent: &str) -> String {
    let request = traced(r#"{"user_id": 7, "post_id": 42}"#, traceparent);
    let response = HttpClient::new(ingest.listen()).send(request).await.unwrap();
    assert_eq!(response.status, 202);
    let taken: serde_json::Value = serde_json::from_slice(&response.body).unwrap();
    taken["id"].as_str().unwrap().to_owned()
}

fn exporting(url: &str, protocol: &str) -> Vec<(&'static str, String)> {
    vec![
        ("OTEL_EXPORTER_OTLP_ENDPOINT", url.to_owned()),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol.to_owned()),
        ("OTEL_BSP_SCHEDULE_DELAY", "100".to_owned()),
        ("OTEL_METRIC_EXPORT_INTERVAL", "200ms".to_owned()),
    ]
}

fn borrowed<'a>(settings: &'a [(&'static str, String)]) -> Vec<(&'a str, &'a str)> {
    settings.iter().map(|(name, value)| (*name, value.as_str())).collect()
}

fn hex(id: &[u8]) -> String {
    let number = id.iter().fold(0_u128, |number, byte| number << 8 | u128::from(*byte));
    format!("{number:0width$x}", width = 2 * id.len())
}

fn only(spans: Vec<Seen>) -> Seen {
    let [span] = spans.try_into().unwrap_or_else(|spans: Vec<Seen>| panic!("{spans:#?}"));
    span
}

/// Names of the fields of all entries.
async fn fields_of_the_entry(setup: &Setup) -> Vec<String> {
    let client = setup.redis_client().await;
    let mut names = Vec::new();
    for partition in 0..PARTITIONS {
        let found: Value = client.xrange(stream(partition), "-", "+", None).await.unwrap();
        for entry in found.into_array() {
            let [_, fields] = entry.into_array().try_into().unwrap();
            names.extend(fields.into_array().chunks(2).map(|pair| pair[0].as_string().unwrap()));
        }
    }
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn a_like_is_traced_from_the_client_to_the_table() {
    for protocol in ["grpc", "http/protobuf"] {
        let setup = Setup::new().await;
        let collector = Collector::start().await;
        let settings = exporting(&collector.url(), protocol);
        let ingest = setup.ingest(&borrowed(&settings));
        let _consumer = setup.consumer(&borrowed(&settings));
        let entry_id = like(&ingest, &format!("00-{TRACE}-{CALLER}-01")).await;
        setup.wait_for_rows(1).await;
        let there = |name| collector.spans_named("consumer", name).len() == 1;
        eventually("the batch is traced", async || there("process likes:{partition}")).await;
        let there = |name| collector.spans_named("ingest", name).len() == 1;
        eventually("the request is traced", async || there("POST /likes") && there("XADD likes:{partition}"))
            .await;

        let request = only(collector.spans_named("ingest", "POST /likes"));
        assert_eq!(
            (hex(&request.span.trace_id), hex(&request.span.parent_span_id)),
            (TRACE.into(), CALLER.into())
        );
        assert_eq!(request.span.kind(), SpanKind::Server);
        let about = request.attributes();
        for (name, value) in [
            ("http.request.method", "POST"),
            ("http.route", "/likes"),
            ("http.response.status_code", "202"),
            ("url.path", "/likes"),
            ("url.scheme", "http"),
            ("user_agent.original", "tests"),
            ("client.address", "127.0.0.1"),
            ("network.protocol.version", "1.1"),
            ("messaging.message.id", &entry_id),
        ] {
            assert_eq!(about.get(name).map(String::as_str), Some(value), "{name}: {about:#?}");
        }

        let sent = only(collector.spans_named("ingest", "XADD likes:{partition}"));
        assert_eq!(sent.span.kind(), SpanKind::Producer);
        assert_eq!(hex(&sent.span.trace_id), TRACE);
        assert_eq!(sent.span.parent_span_id, request.span.span_id);
        assert_eq!(sent.span.trace_state, "vendor=caller");
        let about = sent.attributes();
        assert_eq!(about["messaging.message.id"], entry_id);
        assert!(about["messaging.destination.name"].starts_with("likes:{"), "{about:#?}");

        let batch = only(collector.spans_named("consumer", "process likes:{partition}"));
        assert_eq!(batch.span.kind(), SpanKind::Consumer);
        let [link] = batch.span.links.as_slice() else { panic!("{batch:#?}") };
        assert_eq!((&link.trace_id, &link.span_id), (&sent.span.trace_id, &sent.span.span_id));
        assert_eq!(link.trace_state, "vendor=caller");
        let about = batch.attributes();
        assert_eq!(about["messaging.batch.message_count"], "1");
        assert_eq!(about["messaging.consumer.group.name"], "likes-writers");
        assert_eq!(
            (about["likestream.rows.inserted"].as_str(), about["likestream.likes"].as_str()),
            ("1", "1")
        );

        let below = |name| {
            let seen = only(collector.spans_named("consumer", name));
            assert_eq!(seen.span.parent_span_id, batch.span.span_id, "{name}");
            assert_eq!(seen.span.kind(), SpanKind::Client, "{name}");
            assert!(lasts_within(&seen.span, &batch.span), "{seen:#?} in {batch:#?}");
            seen.attributes()
        };
        let stored = below("COPY likes");
        assert_eq!(
            (stored["db.system.name"].as_str(), stored["db.collection.name"].as_str()),
            ("postgresql", "likes")
        );
        assert_eq!(stored["likestream.rows"], "1");
        assert_eq!(below("XACK likes:{partition}")["messaging.operation.type"], "settle");
    }
}

fn lasts_within(span: &Span, other: &Span) -> bool {
    // Start times are computed from end times, which is slightly inaccurate.
    const SLACK_NANOS: u64 = 5_000_000;
    let begins = span.start_time_unix_nano + SLACK_NANOS >= other.start_time_unix_nano;
    begins && span.end_time_unix_nano <= other.end_time_unix_nano + SLACK_NANOS
}

#[tokio::test(flavor = "multi_thread")]
async fn unsampled_requests_create_no_spans() {
    let setup = Setup::new().await;
    let collector = Collector::start().await;
    let settings = exporting(&collector.url(), "grpc");
    let mut off = settings.clone();
    off.push(("OTEL_TRACES_SAMPLER", "always_off".to_owned()));
    let ingest = setup.ingest(&borrowed(&settings));
    like(&ingest, &format!("00-{TRACE}-{CALLER}-00")).await;
    let ingest_off = setup.ingest(&borrowed(&off));
    like(&ingest_off, &format!("00-{TRACE}-{CALLER}-01")).await;
    let ingest_without = setup.ingest(&[]);
    like(&ingest_without, &format!("00-{TRACE}-{CALLER}-01")).await;
    let mut deaf = settings.clone();
    deaf.extend([
        ("OTEL_PROPAGATORS", "none".to_owned()),
        ("OTEL_TRACES_SAMPLER", "parentbased_always_off".to_owned()),
    ]);
    like(&setup.ingest(&borrowed(&deaf)), &format!("00-{TRACE}-{CALLER}-01")).await;
    assert_eq!(fields_of_the_entry(&setup).await, ["l", "l", "l", "l"]);

    // Metrics are still exported, so spans would have arrived by now.
    let seen = collector.metrics().len();
    eventually("metrics", async || collector.metrics().len() > seen + 30).await;
    assert!(collector.spans().is_empty(), "{:#?}", collector.spans());

    // For a root span, ingest makes the sampling decision.
    let mut root = settings.clone();
    root.extend([
        ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio".to_owned()),
        ("OTEL_TRACES_SAMPLER_ARG", "1".to_owned()),
    ]);
    let ingest = setup.ingest(&borrowed(&root));
    assert_eq!(post(&ingest, r#"{"user_id": 9, "post_id": 42}"#).await.status, 202);
    eventually("a root", async || collector.spans_named("ingest", "POST /likes").len() == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn span_links_are_limited_and_counted() {
    let setup = Setup::new().await;
    let collector = Collector::start().await;
    let client = setup.redis_client().await;
    for (number, like) in likes(10).into_iter().enumerate() {
        let payload = Bytes::from(shared::wire::codec::encode(&[like]));
        // Every second entry is sampled.
        let parent = format!("00-{TRACE}-{:016x}-{:02x}", number + 1, number % 2);
        let fields =
            vec![("l", payload), ("traceparent", Bytes::from(parent)), ("tracestate", Bytes::from("a=b"))];
        client.xadd::<(), _, _, _, _>(stream(0), false, None::<()>, "*", fields).await.unwrap();
    }
    let mut settings = exporting(&collector.url(), "http/protobuf");
    settings.extend([
        ("OTEL_SPAN_LINK_COUNT_LIMIT", "3".to_owned()),
        // Batches without a sampled entry would not be sampled.
        ("OTEL_TRACES_SAMPLER", "parentbased_always_off".to_owned()),
        ("BATCH_LINGER", "1s".to_owned()),
    ]);
    let _consumer = setup.consumer(&borrowed(&settings));
    setup.wait_for_rows(10).await;
    let name = "process likes:{partition}";
    eventually("the batch is traced", async || collector.spans_named("consumer", name).len() == 1).await;
    let batch = only(collector.spans_named("consumer", name));
    assert_eq!(batch.span.links.len(), 3);
    assert_eq!(batch.span.dropped_links_count, 2);
    let about = batch.attributes();
    assert_eq!(about["likestream.links.total"], "5");
    assert_eq!(about["messaging.batch.message_count"], "10");
}

#[tokio::test(flavor = "multi_thread")]
async fn likes_of_many_traces_in_one_entry_are_linked() {
    let setup = Setup::new().await;
    let collector = Collector::start().await;
    let mut settings = exporting(&collector.url(), "grpc");
    settings.push(("REDIS_TIMEOUT", "20s".to_owned()));
    let ingest = setup.ingest(&borrowed(&settings));
    let body = r#"{"user_id": 7, "post_id": 42}"#;
    setup.redis.pause();
    let sent = (1..=8_u64).map(|number| {
        let request = traced(body, &format!("00-{number:032x}-{CALLER}-01"));
        let mut client = HttpClient::new(ingest.listen());
        tokio::spawn(async move { client.send(request).await.unwrap().status })
    });
    let sent: Vec<_> = sent.collect();
    let active = || ingest.metrics().unwrap().sum("http_server_active_requests");
    eventually("all requests are in flight", async || active() == 8.0).await;
    setup.redis.resume();
    for answered in sent {
        assert_eq!(answered.await.unwrap(), 202);
    }
    let name = "XADD likes:{partition}";
    let linked = |spans: &[Seen]| spans.iter().map(|seen| 1 + seen.span.links.len()).sum::<usize>();
    eventually("traced", async || linked(&collector.spans_named("ingest", name)) == 8).await;
    let spans = collector.spans_named("ingest", name);
    assert!(spans.len() < 8, "{spans:#?}");
    let traces = spans.iter().flat_map(|seen| {
        let links = seen.span.links.iter().map(|link| hex(&link.trace_id));
        links.chain([hex(&seen.span.trace_id)]).collect::<Vec<_>>()
    });
    assert_eq!(traces.collect::<BTreeSet<_>>().len(), 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_set_the_span_status_and_logs_have_the_trace_id() {
    let setup = Setup::new().await;
    let collector = Collector::start().await;
    let mut settings = exporting(&collector.url(), "grpc");
    settings.push(("LOG_FORMAT", "json".to_owned()));
    let sql = "CREATE FUNCTION disk_full() RETURNS trigger LANGUAGE plpgsql AS
                   $$ BEGIN RAISE EXCEPTION 'no space left' USING ERRCODE = '53100'; END $$;
               CREATE TRIGGER disk_full BEFORE INSERT ON likes FOR EACH ROW EXECUTE FUNCTION disk_full()";
    let consumer = setup.consumer(&borrowed(&settings));
    setup.postgres_client().await.batch_execute(sql).await.unwrap();
    let ingest = setup.ingest(&borrowed(&settings));
    like(&ingest, &format!("00-{TRACE}-{CALLER}-01")).await;
    let failed = || {
        let tried = collector.spans_named("consumer", "COPY likes").into_iter();
        tried.chain(collector.spans_named("consumer", "INSERT likes")).next()
    };
    eventually("a write has failed", async || failed().is_some()).await;
    let failed = failed().unwrap();
    let about = failed.attributes();
    assert_eq!((about["error.type"].as_str(), about["db.response.status_code"].as_str()), ("53100", "53100"));
    assert_eq!(failed.span.status.clone().unwrap().code(), StatusCode::Error);
    let trace_id = hex(&failed.span.trace_id);
    let named = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        line["trace_id"] == trace_id && line["span_id"].as_str().is_some_and(|id| id.len() == 16)
    };
    assert!(consumer.log_text().lines().any(named), "{}", consumer.log_text());

    // A client error is not an error of the span.
    let request = traced("nonsense", &format!("00-{TRACE}-{CALLER}-01"));
    assert_eq!(HttpClient::new(ingest.listen()).send(request).await.unwrap().status, 400);
    let refused = || {
        let posts = collector.spans_named("ingest", "POST /likes").into_iter();
        posts
            .map(|seen| (seen.attributes(), seen.span.status.unwrap_or_default().code()))
            .find(|(about, _)| about["http.response.status_code"] == "400")
    };
    eventually("the refused request is traced", async || refused().is_some()).await;
    let (about, status) = refused().unwrap();
    assert!(!about.contains_key("error.type") && status == StatusCode::Unset, "{about:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_or_unreachable_collector_causes_no_delay() {
    let frozen = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = frozen.local_addr().unwrap();
    let (plain, by_tls) = (format!("http://{address}"), format!("https://{address}"));
    let authority = Authority::new("collectors");
    for (url, protocol) in [
        (plain.as_str(), "grpc"),
        (&plain, "http/protobuf"),
        (&by_tls, "grpc"),
        (&by_tls, "http/protobuf"),
        ("http://127.0.0.1:1", "grpc"),
    ] {
        let setup = Setup::new().await;
        let mut settings = exporting(url, protocol);
        // A short queue, which overflows quickly. The overflow is logged once.
        settings.push(("OTEL_BSP_MAX_QUEUE_SIZE", "16".to_owned()));
        if url == by_tls {
            let ca = authority.file().to_str().unwrap().to_owned();
            settings.push(("OTEL_EXPORTER_OTLP_CERTIFICATE", ca));
        }
        let mut ingest = setup.ingest(&borrowed(&settings));
        let mut consumer = setup.consumer(&borrowed(&settings));
        let mut client = HttpClient::new(ingest.listen());
        for user in 1..=500 {
            assert_eq!(client.post_like(user, 42).await.unwrap().status, 202);
        }
        drop(client);
        setup.wait_for_rows(500).await;
        eventually("exports fail", async || {
            ingest.metrics().unwrap().sum("likestream_export_failures_total") > 0.0
        })
        .await;
        let dropped = || ingest.metrics().unwrap().sum("likestream_spans_dropped_total");
        eventually("spans are dropped", async || {
            let at_once = (0..32).map(async |_| {
                HttpClient::new(ingest.listen()).post_like(7, 42).await.unwrap().status == 202
            });
            assert!(join_all(at_once).await.into_iter().all(|taken| taken));
            dropped() > 0.0
        })
        .await;
        assert_eq!(ingest.terminate(SOON).unwrap().code(), Some(0), "{}", ingest.log_text());
        assert_eq!(consumer.terminate(SOON).unwrap().code(), Some(0), "{}", consumer.log_text());
        let log = ingest.log_text();
        let is_complaint = |line: &&str| {
            [r#""level":"WARN""#, r#""level":"ERROR""#].iter().any(|level| line.contains(level))
        };
        let complaints = log.lines().filter(is_complaint).count();
        assert!((1..=8).contains(&complaints), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn buffered_spans_are_exported_at_shutdown() {
    let setup = Setup::new().await;
    let collector = Collector::start().await;
    let mut settings = exporting(&collector.url(), "grpc");
    settings.push(("OTEL_BSP_SCHEDULE_DELAY", "1h".to_owned()));
    let mut ingest = setup.ingest(&borrowed(&settings));
    like(&ingest, &format!("00-{TRACE}-{CALLER}-01")).await;
    assert_eq!(ingest.terminate(SOON).unwrap().code(), Some(0));
    assert_eq!(collector.spans_named("ingest", "POST /likes").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_and_resource_attributes_are_exported_over_mutual_tls() {
    let (authority, stranger) = (Authority::new("collectors"), Authority::new("strangers"));
    let acceptor = authority.acceptor(&authority.issue("collector", &HERE));
    let client = authority.issue("ingest", &[]);
    for protocol in ["grpc", "http/protobuf"] {
        let setup = Setup::without_schema(&[]).await;
        let collector = Collector::with_tls(acceptor.clone()).await;
        let mut settings = exporting(&collector.url(), protocol);
        let ca = authority.file();
        settings.extend([
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", ca.to_str().unwrap().to_owned()),
            ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", client.certificate().to_owned()),
            ("OTEL_EXPORTER_OTLP_CLIENT_KEY", client.key().to_owned()),
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20hunter2,x-team=likes".to_owned()),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip".to_owned()),
            ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "Delta".to_owned()),
            ("OTEL_SERVICE_NAME", "edge".to_owned()),
            (
                "OTEL_RESOURCE_ATTRIBUTES",
                "deployment.environment.name=test%20bed,service.name=lost".to_owned(),
            ),
            ("RUST_LOG", "trace".to_owned()),
        ]);
        let ingest = setup.ingest(&borrowed(&settings));
        like(&ingest, &format!("00-{TRACE}-{CALLER}-01")).await;
        eventually("spans and metrics are received", async || {
            !collector.spans().is_empty() && !collector.metrics().is_empty()
        })
        .await;
        let sums = || {
            let sums = collector.metrics().into_iter().filter_map(|metric| match metric.data {
                Some(Data::Sum(sum)) if sum.is_monotonic => Some(sum.aggregation_temporality()),
                _ => None,
            });
            sums.collect::<Vec<_>>()
        };
        eventually("sums are received", async || !sums().is_empty()).await;
        assert!(sums().iter().all(|temporality| *temporality == AggregationTemporality::Delta));
        let resource = collector.resources().remove(0);
        assert_eq!(resource["service.name"], "edge");
        assert_eq!(resource["service.namespace"], "likestream");
        assert_eq!(resource["deployment.environment.name"], "test bed");
        for headers in collector.headers() {
            assert_eq!(
                (&headers["authorization"], &headers["x-team"]),
                (&"Bearer hunter2".parse().unwrap(), &"likes".parse().unwrap())
            );
            let encoding = headers.get("grpc-encoding").or(headers.get("content-encoding"));
            assert_eq!(encoding.unwrap(), "gzip");
        }
        assert!(!ingest.log_text().contains("hunter2"), "the log contains a secret");

        // A collector with an untrusted certificate receives nothing.
        let other = Collector::with_tls(acceptor.clone()).await;
        let mut settings = exporting(&other.url(), protocol);
        settings.push(("OTEL_EXPORTER_OTLP_CERTIFICATE", stranger.file().to_str().unwrap().to_owned()));
        let ingest = setup.ingest(&borrowed(&settings));
        like(&ingest, &format!("00-{TRACE}-{CALLER}-01")).await;
        let failures = || ingest.metrics().unwrap().sum_where("likestream_export_failures_total", "traces");
        eventually("it fails", async || failures() >= 1.0).await;
        assert!(ingest.log_text().contains("export to the collector fails"), "{}", ingest.log_text());
        assert!(other.spans().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn disabled_signals_are_not_exported() {
    let setup = Setup::without_schema(&[]).await;
    let collector = Collector::start().await;
    for (name, value) in [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")] {
        let mut settings = exporting(&collector.url(), "grpc");
        settings.extend([(name, value.to_owned()), ("OTEL_METRICS_EXPORTER", "none".to_owned())]);
        let mut ingest = setup.ingest(&borrowed(&settings));
        like(&ingest, &format!("00-{TRACE}-{CALLER}-01")).await;
        assert_eq!(ingest.terminate(SOON).unwrap().code(), Some(0));
    }
    assert!(collector.spans().is_empty() && collector.metrics().is_empty());
    assert_eq!(entries(&setup.redis_client().await).await, 2);
    // The endpoint of a single signal is used unchanged.
    let own = format!("{}/v1/traces", collector.url());
    let settings = [("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", own.as_str()), ("OTEL_BSP_SCHEDULE_DELAY", "100")];
    let ingest = setup.ingest(&settings);
    like(&ingest, &format!("00-{TRACE}-{CALLER}-01")).await;
    eventually("spans are exported", async || !collector.spans().is_empty()).await;
    assert!(collector.metrics().is_empty());
}

#[test]
fn invalid_opentelemetry_settings_are_refused() {
    for (name, value, allowed) in [
        ("OTEL_SDK_DISABLED", "maybe", "true, false"),
        ("OTEL_TRACES_SAMPLER", "sometimes", "parentbased_traceidratio"),
        ("OTEL_TRACES_SAMPLER_ARG", "2", "from 0 to 1"),
        ("OTEL_TRACES_EXPORTER", "oltp", "otlp, none"),
        ("OTEL_METRICS_EXPORTER", "statsd", "otlp, none, prometheus"),
        ("OTEL_LOGS_EXPORTER", "paper", "none"),
        ("OTEL_PROPAGATORS", "carrier-pigeon", "tracecontext, baggage, none"),
        ("OTEL_RESOURCE_ATTRIBUTES", "team", "key=value"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317", "http://collector:4318"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", "grpc, http/protobuf"),
        ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "udp", "grpc, http/protobuf"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "0", "milliseconds"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd", "gzip, none"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "missing.pem", "cannot use missing.pem: "),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0", "from 1"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "many", "from 1"),
        ("OTEL_BSP_SCHEDULE_DELAY", "soon", "milliseconds"),
        ("OTEL_SPAN_LINK_COUNT_LIMIT", "1025", "from 0 to 1024"),
        ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "brief", "cumulative, delta, lowmemory"),
    ] {
        for program in ["ingest", "consumer"] {
            let ended = run(program, &[], &[("OTEL_TRACES_EXPORTER", "otlp"), (name, value)]);
            assert_eq!(ended.code, Some(2), "{name}={value}: {}", ended.stderr);
            assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
            assert!(ended.stderr.starts_with(&format!("error: {name}: ")), "{}", ended.stderr);
            assert!(ended.stderr.contains(value) && ended.stderr.contains(allowed), "{}", ended.stderr);
        }
    }
    let secret =
        [("OTEL_EXPORTER_OTLP_HEADERS", "hunter2"), ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "a=hunter2%00")];
    for setting in secret {
        let ended = run("ingest", &[], &[setting]);
        assert_eq!(ended.code, Some(2));
        assert!(!ended.stderr.contains("hunter2") && ended.stderr.contains("name=value"), "{}", ended.stderr);
    }
    let ended = run("ingest", &[], &[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://u:hunter2@collector:4318")]);
    assert!(ended.code == Some(2) && !ended.stderr.contains("hunter2"), "{}", ended.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_and_unsupported_opentelemetry_settings_are_ignored() {
    let setup = Setup::without_schema(&[]).await;
    let settings = [
        ("OTEL_TRACES_SAMPLER", ""),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", " "),
        ("OTEL_PROPAGATORS", "tracecontext,b3"),
        ("OTEL_LOGS_EXPORTER", "otlp"),
    ];
    let ingest = setup.ingest(&settings);
    for ignored in ["OTEL_PROPAGATORS=b3", "OTEL_LOGS_EXPORTER=otlp"] {
        let warning = format!(r#""message":"setting is ignored","setting":"{ignored}, "#);
        assert!(ingest.log_text().contains(&warning), "{}", ingest.log_text());
    }
    // With telemetry disabled, invalid settings do not prevent the start.
    let off = [
        ("OTEL_SDK_DISABLED", "true"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "missing.pem"),
        ("OTEL_TRACES_SAMPLER", "x"),
    ];
    assert_eq!(post(&setup.ingest(&off), r#"{"user_id": 7, "post_id": 42}"#).await.status, 202);
}
