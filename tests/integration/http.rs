//! HTTP requests: acceptance, refusals and their problem responses.

use bytes::Bytes;
use devstack::http_client::{HttpClient, Response};
use http_body_util::Full;
use hyper::Request;

use crate::harness::{Setup, entries, post, problem};

async fn send(setup: &Setup, requests: Vec<Request<Full<Bytes>>>) -> Vec<Response> {
    let ingest = setup.ingest(&[("INGEST_MAX_BODY", "1KiB")]);
    let mut client = HttpClient::new(ingest.listen());
    let mut responses = Vec::new();
    for request in requests {
        responses.push(client.send(request).await.unwrap());
    }
    responses
}

fn json(body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::post("/likes").header("content-type", "application/json").body(Full::new(body.into())).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_bodies_are_refused_with_a_problem_and_not_appended() {
    let setup = Setup::new().await;
    let cases: [(&str, u16, &str); 18] = [
        ("", 400, "invalid-json"),
        ("user_id=7&post_id=42", 400, "invalid-json"),
        (r#"{"user_id": 7, "post_id": 42"#, 400, "invalid-json"),
        ("\u{0}", 400, "invalid-json"),
        ("null", 422, "invalid-like"),
        ("7", 422, "invalid-like"),
        (r#"[{"user_id": 7, "post_id": 42}]"#, 422, "invalid-like"),
        ("{}", 422, "invalid-like"),
        (r#"{"user_id": 7}"#, 422, "invalid-like"),
        (r#"{"post_id": 42}"#, 422, "invalid-like"),
        (r#"{"user_id": 0, "post_id": 42}"#, 422, "invalid-like"),
        (r#"{"user_id": -7, "post_id": 42}"#, 422, "invalid-like"),
        (r#"{"user_id": 9223372036854775808, "post_id": 42}"#, 422, "invalid-like"),
        (r#"{"user_id": 1e400, "post_id": 42}"#, 400, "invalid-json"),
        (r#"{"user_id": 7.5, "post_id": 42}"#, 422, "invalid-like"),
        (r#"{"user_id": "seven", "post_id": 42}"#, 422, "invalid-like"),
        (r#"{"user_id": [7], "post_id": 42}"#, 422, "invalid-like"),
        (r#"{"user_id": 7, "post_id": 42, "created_at": "soon"}"#, 422, "invalid-like"),
    ];
    let responses = send(&setup, cases.iter().map(|(body, ..)| json(*body)).collect()).await;
    for ((body, status, code), response) in cases.iter().zip(&responses) {
        assert_eq!((response.status.as_u16(), problem(response).as_str()), (*status, *code), "{body}");
    }
    assert_eq!(entries(&setup.redis_client().await).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn oversized_bodies_are_refused() {
    let setup = Setup::new().await;
    let padded = |bytes: usize| {
        let like = r#"{"user_id": 7, "post_id": 42}"#;
        format!("{like}{}", " ".repeat(bytes - like.len()))
    };
    let responses = send(&setup, vec![json(padded(1025)), json(padded(1_000_000)), json(padded(1024))]).await;
    assert_eq!((responses[0].status.as_u16(), problem(&responses[0]).as_str()), (413, "body-too-large"));
    assert_eq!((responses[1].status.as_u16(), problem(&responses[1]).as_str()), (413, "body-too-large"));
    assert_eq!(responses[2].status, 202);
    assert_eq!(entries(&setup.redis_client().await).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_json_is_accepted() {
    let setup = Setup::new().await;
    let with_type = |media_type: Option<&str>| {
        let mut request = json(r#"{"user_id": 7, "post_id": 42}"#);
        request.headers_mut().remove("content-type");
        if let Some(media_type) = media_type {
            request.headers_mut().insert("content-type", media_type.parse().unwrap());
        }
        request
    };
    let refused =
        [None, Some("text/plain"), Some("application/x-www-form-urlencoded"), Some("application/jsonx")];
    let taken = [Some("application/json"), Some("Application/JSON; charset=utf-8")];
    let requests = refused.iter().chain(&taken).map(|media_type| with_type(*media_type)).collect();
    let responses = send(&setup, requests).await;
    for response in &responses[..refused.len()] {
        assert_eq!((response.status.as_u16(), problem(response).as_str()), (415, "unsupported-media-type"));
    }
    assert!(responses[refused.len()..].iter().all(|response| response.status == 202));
    assert_eq!(entries(&setup.redis_client().await).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_paths_and_methods_are_refused() {
    let setup = Setup::new().await;
    let get = |path: &str| Request::get(path).body(Full::new(Bytes::new())).unwrap();
    let responses = send(&setup, vec![get("/likes"), get("/"), get("/livez"), get("/metrics")]).await;
    assert_eq!((responses[0].status.as_u16(), problem(&responses[0]).as_str()), (405, "method-not-allowed"));
    assert_eq!(responses[0].headers["allow"], "POST");
    for response in &responses[1..] {
        assert_eq!((response.status.as_u16(), problem(response).as_str()), (404, "not-found"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_valid_request_id_is_echoed() {
    let setup = Setup::new().await;
    let with_id = |id: &str| {
        let mut request = json(r#"{"user_id": 7, "post_id": 42}"#);
        request.headers_mut().insert("x-request-id", id.parse().unwrap());
        request
    };
    let responses = send(&setup, vec![with_id("abc-123"), with_id("a b"), with_id(&"x".repeat(200))]).await;
    let id = |response: &Response| response.headers["x-request-id"].to_str().unwrap().to_owned();
    assert_eq!(id(&responses[0]), "abc-123");
    assert_eq!(id(&responses[1]).len(), 32);
    assert_eq!(id(&responses[2]).len(), 32);
    assert_ne!(id(&responses[1]), id(&responses[2]));
}

#[tokio::test(flavor = "multi_thread")]
async fn ingest_depends_only_on_redis() {
    let setup = Setup::without_schema(&[]).await;
    let ingest = setup.ingest(&[("DATABASE_URL", "postgres://nobody@127.0.0.1:1/nothing")]);
    assert_eq!(post(&ingest, r#"{"user_id": 7, "post_id": 42}"#).await.status, 202);
    let (status, checks) = devstack::admin::get(ingest.admin(), "/readyz?verbose").unwrap();
    assert_eq!((status, checks.as_str()), (200, "[+] redis ok\nready\n"));
    assert_eq!(devstack::admin::get(ingest.admin(), "/livez").unwrap().0, 200);
    let metrics = ingest.metrics().unwrap();
    assert_eq!(metrics.sum("likestream_likes_accepted_total"), 1.0);
}

/// Paths, headers and bodies are at most quoted in part.
#[tokio::test(flavor = "multi_thread")]
async fn no_refusal_returns_a_large_input() {
    const MAX_ANSWER_BYTES: usize = 4 << 10;
    let setup = Setup::without_schema(&[]).await;
    let ingest = setup.ingest(&[]);
    let mut client = HttpClient::new(ingest.listen());
    let long = "x".repeat(8_000);
    let mut requests = vec![
        Request::get(format!("/{long}")),
        Request::get(format!("/docs/{long}")),
        Request::get(format!("/likes?{long}")),
        Request::builder().method(&long[..100]).uri("/likes"),
    ];
    let header =
        |name: &str| Request::post("/likes").header("content-type", "application/json").header(name, &long);
    requests.extend(["x-request-id", "idempotency-key", "origin", "traceparent", "x-api-key"].map(header));
    requests.push(Request::post("/likes").header("content-type", &long));
    let mut requests: Vec<_> =
        requests.into_iter().map(|request| request.body(Full::new(Bytes::from("{}"))).unwrap()).collect();
    for part in ["x", "\\u0001", "\\\\", "\\\"", "\u{10ffff}", "é"] {
        let long = part.repeat(8_000 / part.len());
        for body in [
            format!("{{\"user_id\": \"{long}\", \"post_id\": 42}}"),
            format!("{{\"user_id\": 7, \"postId\": \"{long}\"}}"),
            format!("{{\"user_id\": 7, \"post_id\": 42, \"created_at\": \"{long}\"}}"),
            format!("{{\"{long}\": 7}}"),
            format!("\"{long}\""),
            format!("[\"{long}\"]"),
        ] {
            requests.push(json(body));
        }
    }
    for value in ["1e308", "-1e308", "5e-324", &"9".repeat(300), &"[".repeat(5_000)] {
        requests.push(json(format!("{{\"user_id\": {value}, \"post_id\": 42}}")));
        requests.push(json(value.to_owned()));
    }
    for request in requests {
        let uri = request.uri().to_string();
        let response = client.send(request).await.unwrap();
        assert!(response.status.is_client_error(), "{uri}: {}", response.status);
        let head: usize =
            response.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        assert!(head + response.body.len() <= MAX_ANSWER_BYTES, "{uri}: {:?}", response.body);
    }
}
