//! Slow and idle connections: they do not affect other clients, and ingest closes them.

use std::time::Duration;

use bytes::Bytes;
use devstack::{
    process::raise_open_files,
    slow_clients::{SlowClients, Slowness},
};
use http_body_util::Full;
use hyper::{Request, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::harness::{SOON, Settings, Setup, eventually, post};

const SLOW: u32 = 1_000;
const HONEST: u64 = 100;

/// Includes about 25 MiB that ingest uses without connections.
const MAX_RESIDENT_BYTES: u64 = 96 << 20;

const TIMEOUTS: Settings<'_> = &[("INGEST_HEAD_TIMEOUT", "3s"), ("INGEST_IDLE_TIMEOUT", "4s")];

const LIKE: &str = "POST /likes HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 29\r\n\r\n\
                    {\"user_id\": 7, \"post_id\": 42}";

/// Silent connections, endless heads and bodies, and HTTP/2 without a request or with an endless one.
#[tokio::test(flavor = "multi_thread")]
async fn slow_clients_do_not_affect_others_and_are_closed() {
    raise_open_files().unwrap();
    let setup = Setup::new().await;
    let ingest = setup.ingest(TIMEOUTS);
    let files_before = ingest.open_files().unwrap();

    let mut slow = SlowClients::start(ingest.listen(), SLOW, &Slowness::ALL);
    eventually("at least half of the slow clients are connected", async || {
        slow.open() >= u64::from(SLOW / 2)
    })
    .await;
    for user in 1..=HONEST {
        let response = post(&ingest, &format!(r#"{{"user_id": {user}, "post_id": 42}}"#)).await;
        assert_eq!(response.status, 202);
        assert!(slow.open() > 0);
    }
    eventually("each slow client was closed once on average", async || slow.closed() >= u64::from(SLOW))
        .await;
    let resident = ingest.peak_resident_bytes().unwrap();
    assert!(resident <= MAX_RESIDENT_BYTES, "{resident}");

    assert!(timeout(SOON, slow.all_closed()).await.is_ok(), "{} are still open", slow.open());
    eventually("no additional file is open", async || ingest.open_files().unwrap() <= files_before).await;
    assert_eq!(post(&ingest, r#"{"user_id": 7, "post_id": 43}"#).await.status, 202);
    let accepted = ingest.metrics().unwrap().sum("likestream_likes_accepted_total");
    assert_eq!(accepted, (HONEST + 1) as f64);
}

/// A keep-alive connection is closed if it sends no further request, or never completes the head of the next one.
#[tokio::test(flavor = "multi_thread")]
async fn idle_keep_alive_connections_are_closed() {
    let setup = Setup::new().await;
    let ingest = setup.ingest(TIMEOUTS);
    for next in ["", "POST /likes HTTP/1.1\r\nx-slow: "] {
        let mut connection = TcpStream::connect(ingest.listen()).await.unwrap();
        let mut answer = [0; 12];
        // The connection can be reused.
        for _ in 0..2 {
            connection.write_all(LIKE.as_bytes()).await.unwrap();
            connection.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"HTTP/1.1 202");
            read_rest(&mut connection).await;
        }
        connection.write_all(next.as_bytes()).await.unwrap();
        let (mut from_ingest, mut to_ingest) = connection.split();
        let closed = async { while from_ingest.read(&mut [0; 64]).await.is_ok_and(|bytes| bytes > 0) {} };
        let dribble = async {
            // The server may have closed the connection.
            while next.is_empty() || to_ingest.write_all(b"a").await.is_ok() {
                sleep(Duration::from_millis(100)).await;
            }
            std::future::pending::<()>().await;
        };
        let ended = timeout(SOON, async {
            tokio::select! {
                () = closed => {}
                () = dribble => {}
            }
        });
        assert!(ended.await.is_ok(), "still open after {next:?}");
    }
}

/// An HTTP/2 client with a flow-control window of 0 keeps sending requests.
#[tokio::test(flavor = "multi_thread")]
async fn unread_responses_use_bounded_memory_and_are_closed() {
    let setup = Setup::without_schema(&[]).await;
    let ingest = setup.ingest(&[("INGEST_BODY_TIMEOUT", "2s"), ("INGEST_BATCH_MEMORY", "4MiB")]);
    let mut connections = JoinSet::new();
    for _ in 0..10 {
        let stream = TcpStream::connect(ingest.listen()).await.unwrap();
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(0)
            .handshake::<_, Full<Bytes>>(TokioIo::new(stream))
            .await
            .unwrap();
        connections.spawn(connection);
        let bad = format!("[{}1]", "1,".repeat(4_000));
        let ask = async move |path: &str, body: &str| {
            let request = Request::builder()
                .method(if body.is_empty() { "GET" } else { "POST" })
                .uri(format!("http://x{path}"))
                .header("content-type", "application/json")
                .body(Full::new(Bytes::from(body.to_owned())))
                .unwrap();
            sender.clone().send_request(request).await
        };
        connections.spawn(async move {
            let mut unread = Vec::new();
            for _ in 0..40 {
                unread.push(ask("/docs/swagger-ui-bundle.js", "").await);
                unread.push(ask("/likes/batch", &bad).await);
            }
            while ask("/nothing", "").await.is_ok_and(|answer| {
                unread.push(Ok(answer));
                unread.len() < 120
            }) {
                sleep(Duration::from_millis(100)).await;
            }
            std::future::pending().await
        });
    }
    // Ingest closes every connection. The clients never end by themselves.
    for _ in 0..10 {
        assert!(
            timeout(SOON, connections.join_next()).await.is_ok(),
            "a connection with unread responses is still open"
        );
    }
    let resident = ingest.peak_resident_bytes().unwrap();
    assert!(resident <= MAX_RESIDENT_BYTES, "{resident}");
    assert_eq!(post(&ingest, r#"{"user_id": 7, "post_id": 42}"#).await.status, 202);
}

/// Reads the rest of a response up to the end of its JSON body.
async fn read_rest(connection: &mut TcpStream) {
    let mut byte = [0];
    while byte != *b"}" {
        connection.read_exact(&mut byte).await.unwrap();
    }
}
