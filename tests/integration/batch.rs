//! `POST /likes/batch`: every like of a batch is accepted or reported by index.

use bytes::Bytes;
use devstack::http_client::{HttpClient, Response};
use http_body_util::Full;
use hyper::Request;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

use crate::harness::{PARTITIONS, Setup, entries, eventually, problem};

const JSON: &str = "application/json";
const LINES: &str = "application/x-ndjson";

async fn send(client: &mut HttpClient, media_type: &str, body: impl Into<Bytes>) -> Response {
    let request = Request::post("/likes/batch").header("content-type", media_type);
    client.send(request.body(Full::new(body.into())).unwrap()).await.unwrap()
}

fn answer(response: &Response) -> Value {
    serde_json::from_slice(&response.body).unwrap()
}

fn like(user: u64) -> Value {
    json!({"user_id": user, "post_id": 42})
}

fn lines(elements: &[Value]) -> String {
    elements.iter().map(Value::to_string).collect::<Vec<_>>().join("\n")
}

/// Of 10,000 likes, three are invalid. They are reported by index, and all other likes are stored.
#[tokio::test(flavor = "multi_thread")]
async fn invalid_likes_are_reported_by_index_and_the_rest_is_stored() {
    let setup = Setup::new().await;
    let ingest = setup.ingest(&[]);
    let mut client = HttpClient::new(ingest.listen());
    let mut elements: Vec<Value> = (1..=10_000).map(like).collect();
    elements[7] = json!({"user_id": 0, "post_id": 42});
    elements[5_000] = json!("nonsense");
    elements[9_999] = json!({"user_id": 7});
    let array = send(&mut client, JSON, Value::from(elements.clone()).to_string()).await;
    let ndjson = send(&mut client, LINES, lines(&elements)).await;
    for response in [&array, &ndjson] {
        assert_eq!(response.status, 202, "{:?}", response.body);
        let said = answer(response);
        assert_eq!((&said["accepted"], &said["rejected"]), (&json!(9_997), &json!(3)));
        let errors = said["errors"].as_array().unwrap();
        let named: Vec<_> =
            errors.iter().map(|error| (error["index"].as_u64().unwrap(), &error["code"])).collect();
        let code = json!("invalid-like");
        assert_eq!(named, [(7, &code), (5_000, &code), (9_999, &code)]);
        assert!(errors.iter().all(|error| !error["detail"].as_str().unwrap().is_empty()), "{said:#}");
    }
    // Likes share entries, with up to 512 likes each: about five entries per partition and batch.
    let redis = setup.redis_client().await;
    let entries = entries(&redis).await;
    assert!(entries <= 2 * u64::from(PARTITIONS) * 6, "{entries}");
    let _consumer = setup.consumer(&[]);
    setup.wait_for_rows(9_997).await;
    assert_eq!(ingest.metrics().unwrap().sum("likestream_likes_accepted_total"), 2.0 * 9_997.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_batches_are_refused_as_a_whole() {
    let setup = Setup::new().await;
    let ingest = setup.ingest(&[
        ("INGEST_BATCH_LIKES", "10"),
        ("INGEST_BATCH_BODY", "1KiB"),
        ("INGEST_BATCH_MEMORY", "1KiB"),
    ]);
    let mut client = HttpClient::new(ingest.listen());
    let eleven: Vec<Value> = (1..=11).map(like).collect();
    let padded = format!("[{}]{}", like(1), " ".repeat(1_024));
    let half = format!("[{},{}", like(1), like(2));
    for (media_type, body, status, code) in [
        (JSON, String::new(), 400, "invalid-json"),
        (JSON, half, 400, "invalid-json"),
        (JSON, like(1).to_string(), 400, "invalid-json"),
        (JSON, "[]".to_owned(), 422, "invalid-batch"),
        (LINES, "\n \n".to_owned(), 422, "invalid-batch"),
        (JSON, "[7, {}]".to_owned(), 422, "invalid-batch"),
        (LINES, "{\n7".to_owned(), 422, "invalid-batch"),
        (JSON, Value::from(eleven.clone()).to_string(), 413, "batch-too-large"),
        (LINES, lines(&eleven), 413, "batch-too-large"),
        (JSON, padded, 413, "body-too-large"),
        ("text/plain", lines(&eleven[..1]), 415, "unsupported-media-type"),
    ] {
        let response = send(&mut client, media_type, body.clone()).await;
        assert_eq!((response.status.as_u16(), problem(&response).as_str()), (status, code), "{body}");
        if code == "invalid-batch" && body.contains('7') {
            assert_eq!(answer(&response)["errors"].as_array().unwrap().len(), 2, "{body}");
        }
    }
    let get = Request::get("/likes/batch").body(Full::new(Bytes::new())).unwrap();
    assert_eq!(client.send(get).await.unwrap().status, 405);
    assert_eq!(entries(&setup.redis_client().await).await, 0);
    let ten = send(&mut client, JSON, Value::from(eleven[..10].to_vec()).to_string()).await;
    assert_eq!((ten.status.as_u16(), &answer(&ten)["accepted"]), (202, &json!(10)));
}

/// A batch that Redis does not accept gets no 202 and can be sent again.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_redis_refuses_can_be_retried() {
    let setup = Setup::new().await;
    let ingest = setup.ingest(&[("REDIS_TIMEOUT", "2s")]);
    let mut client = HttpClient::new(ingest.listen());
    let body = Value::from((1..=1_000).map(like).collect::<Vec<_>>()).to_string();
    setup.redis.command(&["CONFIG", "SET", "maxmemory", "1"]).unwrap();
    let refused = send(&mut client, JSON, body.clone()).await;
    assert_eq!((refused.status.as_u16(), problem(&refused).as_str()), (503, "redis-out-of-memory"));
    assert!(refused.headers.contains_key("retry-after"));
    setup.redis.command(&["CONFIG", "SET", "maxmemory", "0"]).unwrap();
    setup.redis.pause();
    let silent = send(&mut client, JSON, body.clone()).await;
    assert_eq!((silent.status.as_u16(), problem(&silent).as_str()), (503, "redis-unavailable"));
    setup.redis.resume();
    eventually("the batch is accepted", async || send(&mut client, JSON, body.clone()).await.status == 202)
        .await;
    let _consumer = setup.consumer(&[]);
    setup.wait_for_rows(1_000).await;
    setup.wait_until_drained().await;
}

/// Bodies in transfer reserve memory. Further requests are refused with Retry-After.
#[tokio::test(flavor = "multi_thread")]
async fn memory_for_batch_bodies_is_bounded() {
    let setup = Setup::new().await;
    let ingest = setup.ingest(&[("INGEST_BATCH_BODY", "1MiB"), ("INGEST_BATCH_MEMORY", "1MiB")]);
    let mut client = HttpClient::new(ingest.listen());
    let body = format!("[{}]", like(1));
    assert_eq!(send(&mut client, JSON, body.clone()).await.status, 202);
    let head = "POST /likes/batch HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1048576\r\n\r\n";
    let begin = async || {
        let mut connection = TcpStream::connect(ingest.listen()).await.unwrap();
        connection.write_all(head.as_bytes()).await.unwrap();
        connection
    };
    // A body that is announced but not sent reserves only a small part of the memory.
    let silent = [begin().await, begin().await, begin().await];
    assert_eq!(send(&mut client, JSON, body.clone()).await.status, 202);
    drop(silent);

    // While other requests hold memory, a request for all of it is refused. Then another attempt is made.
    let padding = " ".repeat((1 << 20) - body.len());
    let mut large = begin().await;
    eventually("the memory is exhausted", async || {
        large = begin().await;
        // A refused connection may be closed before the body is sent.
        let _ = large.write_all(padding.as_bytes()).await;
        let _ = large.write_all(&body.as_bytes()[..body.len() - 1]).await;
        for _ in 0..20 {
            let response = send(&mut client, JSON, body.clone()).await;
            if response.status == 503 && problem(&response) == "overloaded" {
                return true;
            }
        }
        false
    })
    .await;
    // Single likes need none of this memory.
    let single = client.post("/likes", JSON, like(2).to_string().into()).await.unwrap();
    assert_eq!(single.status, 202);
    large.write_all(&body.as_bytes()[body.len() - 1..]).await.unwrap();
    let mut answered = [0; 12];
    large.read_exact(&mut answered).await.unwrap();
    assert_eq!(&answered, b"HTTP/1.1 202", "the request that holds the memory succeeds");
    eventually("the memory is released", async || send(&mut client, JSON, body.clone()).await.status == 202)
        .await;
}

/// Clients send many large batches without a valid like at the same time. Each gets a small answer, and the memory stays
/// within the budget.
#[tokio::test(flavor = "multi_thread")]
async fn bad_batches_use_bounded_memory_and_get_small_answers() {
    const BODY_BYTES: usize = 4 << 20;
    const MAX_ANSWER_BYTES: usize = 192 << 10;
    /// The budget of 64 MiB, and half as much for the buffers of connections and for memory that was freed lately.
    const MAX_GROWTH_BYTES: u64 = 96 << 20;
    let setup = Setup::without_schema(&[]).await;
    let ingest = setup.ingest(&[
        ("INGEST_BATCH_LIKES", "100000"),
        ("INGEST_BATCH_MEMORY", "64MiB"),
        // A busy machine may need longer than the default to send 64 MiB.
        ("INGEST_BODY_TIMEOUT", "2m"),
    ]);
    let idle = ingest.peak_resident_bytes().unwrap();
    let filled = |start: &str, part: &str, end: &str| {
        let parts = (BODY_BYTES - start.len() - end.len()) / part.len();
        Bytes::from(format!("{start}{}{end}", part.repeat(parts)))
    };
    for (media_type, body) in [
        (JSON, filled("[{\"user_id\": \"", "\\u0001", "\"}]")),
        (JSON, filled("[{\"user_id\": \"\\u0001", "x", "\"}]")),
        (JSON, filled("[\"", "\\\\", "\"]")),
        (JSON, filled("[", "[],", "1]")),
        (JSON, filled("[", "{},", "1]")),
        (JSON, filled("[", &format!("{{\"user_id\": \"{}\"}},", "\\u0001".repeat(64)), "1]")),
        (JSON, filled("[", "1e308,", "1]")),
        (JSON, filled("[", &"[".repeat(BODY_BYTES / 2), "]")),
        (LINES, filled("", "{}\n", "")),
        (LINES, filled("", "\"\n", "")),
    ] {
        let mut requests = JoinSet::new();
        for _ in 0..16 {
            let (mut client, body) = (HttpClient::new(ingest.listen()), body.clone());
            requests.spawn(async move { send(&mut client, media_type, body).await });
        }
        let start = String::from_utf8_lossy(&body[..40]).into_owned();
        let mut refused = 0;
        while let Some(response) = requests.join_next().await {
            let response = response.unwrap();
            let status = response.status.as_u16();
            assert!([400, 413, 422, 503].contains(&status), "{start}: {status}");
            refused += u32::from(status != 503);
            assert!(response.body.len() <= MAX_ANSWER_BYTES, "{start}: {} bytes", response.body.len());
        }
        assert!(refused > 0, "{start}");
        let growth = ingest.peak_resident_bytes().unwrap() - idle;
        assert!(growth <= MAX_GROWTH_BYTES, "{start}: {growth} bytes");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn omitted_errors_are_counted() {
    let setup = Setup::without_schema(&[]).await;
    let ingest = setup.ingest(&[]);
    let mut client = HttpClient::new(ingest.listen());
    let bad = "{\"user_id\": 0, \"post_id\": 42}\n".repeat(9_999);
    for (body, status) in [(bad.clone(), 422), (format!("{bad}{}", like(1)), 202)] {
        let response = send(&mut client, LINES, body).await;
        assert_eq!(response.status, status);
        let said = answer(&response);
        let listed = said["errors"].as_array().unwrap();
        assert_eq!(listed.len() as u64 + said["errors_omitted"].as_u64().unwrap(), 9_999);
        assert!(listed.len() >= 100 && response.body.len() < 192 << 10, "{}", response.body.len());
        assert!(listed.iter().enumerate().all(|(index, error)| error["index"] == index));
    }
}
