//! The OpenAPI document at `GET /openapi.json`, and Swagger UI at `GET /docs`. The page loads nothing from other hosts.

use std::sync::Arc;

use axum::{
    Router,
    extract::Path,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use utoipa::{
    Modify, OpenApi,
    openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme},
};
use utoipa_swagger_ui::{Config, serve};

use super::{
    problem::{Kind, Problem, ProblemBody},
    routes,
};

/// Content security policy. Swagger UI needs inline styles, which contain its icons.
const DOCS_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const DESCRIPTION: &str = "Accepts likes. The response 202 means that the queue, a Redis Stream, has the like; a consumer writes it to the database soon after.

Requests are idempotent: a like of one user for one post is stored once, however often it is sent. After a timeout, a broken \
connection, a 408, 429 or 5xx, send the same request again. Wait for the time in `Retry-After`, or use exponential backoff with jitter.

Errors are `application/problem+json` (RFC 9457). `type` is stable; `detail` is for humans and may change. \
A request that is not valid HTTP gets 400, 414 or 431 without a body.";

/// Complete programs. `make test-http` runs them.
const EXAMPLES: [(&str, &str, &str); 4] = [
    ("curl", "bash", include_str!("../../../docs/examples/curl.sh")),
    ("Python", "python", include_str!("../../../docs/examples/python.py")),
    ("JavaScript", "javascript", include_str!("../../../docs/examples/javascript.mjs")),
    ("Go", "go", include_str!("../../../docs/examples/go/main.go")),
];

#[derive(OpenApi)]
#[openapi(
    info(
        title = "likestream",
        license(name = "Apache-2.0 OR MIT", identifier = "Apache-2.0 OR MIT"),
    ),
    servers((url = "/")),
    paths(routes::post_like, routes::post_batch),
    components(schemas(ProblemBody)),
    tags((name = "likes", description = "Likes of posts by users")),
    modifiers(&Credentials),
)]
struct Api;

/// Adds the security schemes of `INGEST_AUTH`.
struct Credentials;

impl Modify for Credentials {
    fn modify(&self, api: &mut utoipa::openapi::OpenApi) {
        let token = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("JWT").description(Some(
            "Token of a user or a service. Allows likes of the user whose id is the claim `sub`, or of all users with the service scope.",
        ));
        let key =
            ApiKeyValue::with_description("X-Api-Key", "API key of a service. Allows likes of all users.");
        let components = api.components.get_or_insert_default();
        components.add_security_scheme("token", SecurityScheme::Http(token.build()));
        components.add_security_scheme("key", SecurityScheme::ApiKey(ApiKey::Header(key)));
    }
}

/// Returns the OpenAPI document as formatted JSON.
fn document() -> String {
    let mut api = Api::openapi();
    env!("CARGO_PKG_VERSION").clone_into(&mut api.info.version);
    let example = |(name, language, code): &(&str, &str, &str)| {
        format!("\n\n<details><summary>Client in {name}</summary>\n\n```{language}\n{code}```\n\n</details>")
    };
    api.info.description = Some(DESCRIPTION.to_owned() + &EXAMPLES.iter().map(example).collect::<String>());
    api.to_pretty_json().unwrap_or_default() + "\n"
}

pub(super) fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let json = Bytes::from(document());
    let config = Arc::new(Config::from("../openapi.json").validator_url("none").try_it_out_enabled(true));
    let home = Arc::clone(&config);
    let document = move || async move { ([(header::CONTENT_TYPE, "application/json")], json) };
    Router::new()
        .route("/openapi.json", get(document))
        // Relative, so that it works behind a gateway that adds a path prefix.
        .route("/docs", get(|| async { (StatusCode::MOVED_PERMANENTLY, [(header::LOCATION, "docs/")]) }))
        .route("/docs/", get(move || async move { page("index.html", home) }))
        .route("/docs/{*page}", get(move |Path(path): Path<String>| async move { page(&path, config) }))
}

fn page(path: &str, config: Arc<Config<'static>>) -> Response {
    let Ok(Some(file)) = serve(path, config) else { return Problem::from(Kind::NotFound).into_response() };
    // The bytes are static: nothing is copied per request.
    let mut response = file.bytes.into_response();
    let headers = response.headers_mut();
    let mut set = |name: HeaderName, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    };
    set(header::CONTENT_TYPE, &file.content_type);
    set(header::CONTENT_SECURITY_POLICY, DOCS_POLICY);
    set(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(header::CACHE_CONTROL, "max-age=3600");
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::trace::known_route;

    #[test]
    fn every_documented_path_is_a_known_route() {
        let document: serde_json::Value = serde_json::from_str(&document()).unwrap();
        let paths = document["paths"].as_object().unwrap();
        assert!(paths.len() >= 2);
        for path in paths.keys() {
            assert_eq!(known_route(path), Some(path.as_str()));
        }
        assert_eq!(known_route("/docs/index.css"), Some("/docs/{file}"));
        assert_eq!(known_route("/likes/7"), None);
    }
}
