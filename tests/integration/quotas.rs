//! Quotas and limits of ingest, and the responses to clients that exceed them.

use std::{fs, net::SocketAddr, process::Command, time::Duration};

use bytes::Bytes;
use devstack::{
    http_client::{HttpClient, Response},
    program::Program,
};
use http_body_util::Full;
use hyper::{Method, Request};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::harness::{Setup, entries, eventually, post, problem};

/// Asserts that a response is a 429 or 503 with a Retry-After header.
fn assert_retry_later(response: &Response, status: u16, code: &str) {
    assert_eq!((response.status.as_u16(), problem(response).as_str()), (status, code));
    let seconds: u64 = response.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=3600).contains(&seconds), "{seconds}");
}

fn like(user_id: u64, post_id: u64) -> String {
    format!(r#"{{"user_id": {user_id}, "post_id": {post_id}}}"#)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_user_quota_limits_each_user_separately() {
    let setup = Setup::without_schema(&[]).await;
    // The rate is so low that no token is refilled during the test.
    let ingest = setup.ingest(&[("INGEST_USER_RATE", "3/h")]);
    for post_id in 1..=3 {
        assert_eq!(post(&ingest, &like(7, post_id)).await.status, 202);
    }
    assert_retry_later(&post(&ingest, &like(7, 4)).await, 429, "rate-limited");
    assert_eq!(post(&ingest, &like(8, 4)).await.status, 202);

    let batch = async |likes: &[String]| {
        let mut client = HttpClient::new(ingest.listen());
        let body = format!("[{}]", likes.join(","));
        client.post("/likes/batch", "application/json", body.into()).await.unwrap()
    };
    let likes: Vec<String> = [(7, 1), (9, 1), (0, 1), (7, 2), (9, 2), (9, 3), (9, 4)]
        .map(|(user_id, post_id)| like(user_id, post_id))
        .to_vec();
    let response = batch(&likes).await;
    assert_eq!(response.status, 202);
    let answer: Value = serde_json::from_slice(&response.body).unwrap();
    let errors: Vec<(u64, &str)> = answer["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|error| (error["index"].as_u64().unwrap(), error["code"].as_str().unwrap()))
        .collect();
    let expected = [(0, "rate-limited"), (2, "invalid-like"), (3, "rate-limited"), (6, "rate-limited")];
    assert_eq!((answer["accepted"].as_u64(), errors), (Some(3), expected.to_vec()));
    assert_retry_later(&batch(&[like(7, 1), like(9, 1)]).await, 429, "rate-limited");
    let refused = ingest.metrics().unwrap().sum("likestream_requests_refused_total");
    assert_eq!(refused, 2.0, "each 429 is counted");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_address_quota_separates_clients_behind_trusted_proxies() {
    let setup = Setup::without_schema(&[]).await;
    let ingest =
        setup.ingest(&[("INGEST_ADDRESS_RATE", "2/h"), ("INGEST_TRUSTED_PROXIES", "127.0.0.0/8,10.0.0.1")]);
    let from = async |forwarded_for: &str| {
        let request = Request::post("/likes")
            .header("content-type", "application/json")
            .header("x-forwarded-for", forwarded_for)
            .body(Full::new(Bytes::from(like(7, 42))))
            .unwrap();
        HttpClient::new(ingest.listen()).send(request).await.unwrap()
    };
    for address in ["192.0.2.1", "192.0.2.2", "2001:db8::1"] {
        for _ in 0..2 {
            assert_eq!(from(address).await.status, 202);
        }
        assert_retry_later(&from(address).await, 429, "rate-limited");
    }
    assert_retry_later(&from("192.0.2.9, 192.0.2.1, 10.0.0.1").await, 429, "rate-limited");
    assert_retry_later(&from("2001:db8::2").await, 429, "rate-limited");
    // Without a trusted proxy, all of them are one client.
    let ingest = setup.ingest(&[("INGEST_ADDRESS_RATE", "2/h")]);
    let mut client = HttpClient::new(ingest.listen());
    let mut statuses = Vec::new();
    for address in ["192.0.2.1", "192.0.2.2", "192.0.2.3"] {
        let request = Request::get("/nothing").header("x-forwarded-for", address);
        let response = client.send(request.body(Full::new(Bytes::new())).unwrap()).await.unwrap();
        statuses.push(response.status.as_u16());
    }
    assert_eq!(statuses, [404, 404, 429]);
}

/// Sends the head of a like and none of its body, and reads nothing.
async fn begin(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head =
        "POST /likes HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 29\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

async fn rest_of(mut stream: TcpStream) -> String {
    let mut answer = vec![0; 4096];
    let bytes = stream.read(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer[..bytes]).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_over_the_concurrency_limit_are_refused_until_one_ends() {
    let setup = Setup::without_schema(&[]).await;
    let ingest = setup.ingest(&[("INGEST_MAX_REQUESTS", "2")]);
    let mut begun = [begin(ingest.listen()).await, begin(ingest.listen()).await];
    // A like that arrives earlier would take one of the two places.
    let in_flight = || ingest.metrics().unwrap().sum("http_server_active_requests");
    eventually("both are in flight", async || in_flight() == 2.0).await;
    assert_retry_later(&post(&ingest, &like(7, 42)).await, 503, "overloaded");
    for stream in &mut begun {
        stream.write_all(br#"{"user_id": 7, "post_id": 42}"#).await.unwrap();
    }
    for stream in begun {
        assert!(rest_of(stream).await.starts_with("HTTP/1.1 202"));
    }
    assert_eq!(post(&ingest, &like(7, 42)).await.status, 202);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_per_address_are_limited() {
    let setup = Setup::without_schema(&[]).await;
    // Long timeouts, so that only the limit closes connections.
    let ingest = setup.ingest(&[
        ("INGEST_ADDRESS_CONNECTIONS", "2"),
        ("INGEST_HEAD_TIMEOUT", "1h"),
        ("INGEST_BODY_TIMEOUT", "1h"),
    ]);
    let begun = [begin(ingest.listen()).await, begin(ingest.listen()).await];
    eventually("the third connection is closed", async || {
        let mut third = TcpStream::connect(ingest.listen()).await.unwrap();
        let closed = timeout(Duration::from_secs(2), third.read(&mut [0; 1])).await;
        matches!(closed, Ok(Ok(0) | Err(_)))
    })
    .await;
    assert!(HttpClient::new(ingest.listen()).post_like(7, 42).await.is_err(), "two connections are open");
    drop(begun);
    eventually("new connections are accepted again", async || {
        HttpClient::new(ingest.listen()).post_like(7, 42).await.is_ok_and(|answer| answer.status == 202)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_oversized_request_head_is_refused() {
    let setup = Setup::without_schema(&[]).await;
    let ingest = setup.ingest(&[]);
    let with_header = |bytes: usize| {
        let body = Full::new(Bytes::from(like(7, 42)));
        let request = Request::post("/likes").header("content-type", "application/json");
        request.header("cookie", "x".repeat(bytes)).body(body).unwrap()
    };
    let mut client = HttpClient::new(ingest.listen());
    assert_eq!(client.send(with_header(12_000)).await.unwrap().status, 202);
    assert_eq!(client.send(with_header(20_000)).await.unwrap().status, 431);
    assert_eq!(entries(&setup.redis_client().await).await, 1);
}

/// Soft and hard limit of open files of a process.
fn open_files(pid: u32) -> Option<(u64, u64)> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let line = limits.lines().find(|line| line.starts_with("Max open files"))?;
    let mut numbers = line.split_whitespace().skip(3).map_while(|word| word.parse().ok());
    Some((numbers.next()?, numbers.next()?))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_open_file_limit_is_raised_for_the_connection_limit() {
    let setup = Setup::without_schema(&[]).await;
    for (hard, connections, warns) in [(1_500, "900", false), (600, "900", true)] {
        let log = setup.folder().join(format!("{hard}.log"));
        let mut ingest = Command::new("sh")
            .args(["-c", &format!("ulimit -Sn 300 && ulimit -Hn {hard} && exec \"$0\"")])
            .arg(devstack::program::programs_folder().unwrap().join("ingest"))
            .env("REDIS_URL", setup.redis.url())
            .env("INGEST_MAX_CONNECTIONS", connections)
            .envs([("INGEST_LISTEN", "127.0.0.1:0"), ("INGEST_ADMIN_LISTEN", "127.0.0.1:0")])
            .stderr(fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let raised = (hard.min(1_100), hard);
        eventually("the limit is raised", async || open_files(ingest.id()) == Some(raised)).await;
        let warned =
            || fs::read_to_string(&log).unwrap().contains("fewer connections than INGEST_MAX_CONNECTIONS");
        if warns {
            eventually("the warning is logged", async || warned()).await;
        }
        ingest.kill().unwrap();
        ingest.wait().unwrap();
        assert_eq!(warned(), warns);
    }
}

fn preflight(origin: &str) -> Request<Full<Bytes>> {
    Request::builder()
        .method(Method::OPTIONS)
        .uri("/likes")
        .header("origin", origin)
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "content-type,authorization")
        .body(Full::new(Bytes::new()))
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn only_configured_cors_origins_are_allowed() {
    let setup = Setup::without_schema(&[]).await;
    let app = "https://app.example.org";
    let send =
        async |ingest: &Program, request| HttpClient::new(ingest.listen()).send(request).await.unwrap();
    let off = setup.ingest(&[]);
    let response = send(&off, preflight(app)).await;
    assert_eq!((response.status.as_u16(), response.headers.get("access-control-allow-origin")), (405, None));

    let on = setup.ingest(&[("INGEST_CORS_ORIGINS", "https://app.example.org,https://other.example.org")]);
    let response = send(&on, preflight(app)).await;
    assert_eq!(
        (response.status.as_u16(), response.headers["access-control-allow-origin"].to_str().unwrap()),
        (200, app)
    );
    assert!(response.headers["access-control-allow-headers"].to_str().unwrap().contains("authorization"));
    assert!(!response.headers.contains_key("access-control-allow-credentials"));
    for stranger in ["https://evil.example.org", "http://app.example.org", "null"] {
        let response = send(&on, preflight(stranger)).await;
        assert_eq!(response.headers.get("access-control-allow-origin"), None, "{stranger}");
    }
    // A page must also be able to read error responses.
    let bad = Request::post("/likes").header("origin", app).body(Full::new(Bytes::new())).unwrap();
    let response = send(&on, bad).await;
    assert_eq!(
        (problem(&response).as_str(), response.headers["access-control-allow-origin"].to_str().unwrap()),
        ("unsupported-media-type", app)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idempotency_key_is_accepted_and_the_like_is_stored_once() {
    let setup = Setup::new().await;
    let (ingest, _consumer) = (setup.ingest(&[]), setup.consumer(&[]));
    for key in ["a", "a", "b", ""] {
        let request = Request::post("/likes")
            .header("content-type", "application/json")
            .header("idempotency-key", key)
            .body(Full::new(Bytes::from(like(7, 42))))
            .unwrap();
        assert_eq!(HttpClient::new(ingest.listen()).send(request).await.unwrap().status, 202);
    }
    setup.wait_until_drained().await;
    assert_eq!(setup.count().await, 1);
}
