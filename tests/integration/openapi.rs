//! API documentation that ingest serves.

use bytes::Bytes;
use devstack::http_client::{HttpClient, Response};
use http_body_util::Full;
use hyper::Request;
use serde_json::Value;

use crate::{
    golden,
    harness::{Setup, problem},
};

async fn get(client: &mut HttpClient, path: &str) -> Response {
    client.send(Request::get(path).body(Full::new(Bytes::new())).unwrap()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_committed_openapi_document_is_served() {
    let setup = Setup::without_schema(&[]).await;
    let ingest = setup.ingest(&[]);
    let served = get(&mut HttpClient::new(ingest.listen()), "/openapi.json").await;
    assert_eq!(
        (served.status.as_u16(), served.headers["content-type"].to_str().unwrap()),
        (200, "application/json")
    );
    golden::check("docs/openapi.json", str::from_utf8(&served.body).unwrap());
    let document: Value = serde_json::from_slice(&served.body).unwrap();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1."));
    let documented = document["paths"].as_object().unwrap().keys().map(String::as_str).collect::<Vec<_>>();
    assert_eq!(documented, ["/likes", "/likes/batch"]);
}

/// Addresses in a page that a browser would load.
fn loaded(page: &str) -> Vec<&str> {
    let attributes = page.split(['"', '\'']).collect::<Vec<_>>();
    let pairs = attributes.windows(2).filter(|pair| pair[0].ends_with("src=") || pair[0].ends_with("href="));
    pairs.map(|pair| pair[1]).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_documentation_loads_no_external_resources() {
    let setup = Setup::without_schema(&[]).await;
    let ingest = setup.ingest(&[]);
    let mut client = HttpClient::new(ingest.listen());
    let moved = get(&mut client, "/docs").await;
    assert_eq!((moved.status.as_u16(), moved.headers["location"].to_str().unwrap()), (301, "docs/"));
    let page = get(&mut client, "/docs/").await;
    assert_eq!(page.status, 200);
    let policy = page.headers["content-security-policy"].to_str().unwrap();
    assert!(policy.starts_with("default-src 'none'; script-src 'self';"), "{policy}");
    assert!(!policy.contains("http"), "{policy}");
    let page = String::from_utf8(page.body.to_vec()).unwrap();
    let files = loaded(&page);
    assert!(files.len() >= 5, "{files:?}");
    for file in files {
        assert!(!file.contains("//"), "{file} is an external resource");
        let response = get(&mut client, &format!("/docs/{}", file.trim_start_matches("./"))).await;
        assert_eq!(response.status, 200, "{file}");
        assert!(!response.body.is_empty());
    }
    let start = get(&mut client, "/docs/swagger-initializer.js").await;
    let start = String::from_utf8(start.body.to_vec()).unwrap();
    assert!(start.contains("../openapi.json") && start.contains("\"validatorUrl\": \"none\""), "{start}");
    assert!(!start.contains("http"), "{start}");
    for path in ["/docs/nothing", "/docs/../Cargo.toml", "/docs/%2e%2e/x"] {
        let response = get(&mut client, path).await;
        assert_eq!((response.status.as_u16(), problem(&response).as_str()), (404, "not-found"), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_documentation_can_be_disabled() {
    let setup = Setup::without_schema(&[]).await;
    let ingest = setup.ingest(&[("INGEST_DOCS", "false")]);
    let mut client = HttpClient::new(ingest.listen());
    for path in ["/docs", "/docs/", "/openapi.json"] {
        assert_eq!(get(&mut client, path).await.status, 404);
    }
    assert_eq!(client.post_like(7, 42).await.unwrap().status, 202);
}
