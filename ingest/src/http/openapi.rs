//! What callers can read of ingest: `GET /openapi.json`, and `GET /docs` for people, with nothing from elsewhere.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Router,
    extract::Path,
    http::{HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use utoipa::{
    IntoResponses, Modify, OpenApi, PartialSchema,
    openapi::{
        Content, HeaderBuilder, Ref, RefOr, ResponseBuilder,
        response::Response as ResponseDoc,
        security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme},
    },
};
use utoipa_swagger_ui::{Config, serve};

use crate::http::{
    problem::{Kind, Problem, ProblemBody},
    routes,
};

/// Swagger UI styles itself inline, and has its icons in its style.
const DOCS_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const DESCRIPTION: &str = "Takes likes, and answers as soon as they are safe in a queue; they are in the database soon after.

It is always safe to send a like again: of one user and one post there is only ever one. So after a timeout, a broken \
connection, a 429 or a 503 wait for as long as `Retry-After` says, or some time that grows and differs from caller to caller, and send the same again.

Errors are `application/problem+json` (RFC 9457). Their `type` is stable, their `detail` is for people. What is not HTTP at all gets a bare 400, 414 or 431.";

/// Whole programs, which `make test-http` runs.
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
    paths(routes::like, routes::batch),
    components(schemas(ProblemBody)),
    tags((name = "likes", description = "What users like")),
    modifiers(&Credentials),
)]
struct Api;

/// The credentials of `INGEST_AUTH`.
struct Credentials;

impl Modify for Credentials {
    fn modify(&self, api: &mut utoipa::openapi::OpenApi) {
        let token = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("JWT").description(Some(
            "For users: may write only likes of the user that is its sub. With the scope of a service, those of all.",
        ));
        let key = ApiKeyValue::with_description("X-Api-Key", "For services: may write likes of all users.");
        let components = api.components.get_or_insert_default();
        components.add_security_scheme("token", SecurityScheme::Http(token.build()));
        components.add_security_scheme("key", SecurityScheme::ApiKey(ApiKey::Header(key)));
    }
}

/// What both endpoints may say no with.
const REFUSALS: [Kind; 16] = [
    Kind::InvalidJson,
    Kind::BodyIncomplete,
    Kind::NoCredential,
    Kind::InvalidCredential,
    Kind::OtherUser,
    Kind::BodyTimeout,
    Kind::BodyTooLarge,
    Kind::UnsupportedMediaType,
    Kind::RateLimited,
    Kind::Internal,
    Kind::BacklogFull,
    Kind::Overloaded,
    Kind::RedisOutOfMemory,
    Kind::RedisRefused,
    Kind::RedisUnconfirmed,
    Kind::RedisUnavailable,
];

/// What `POST /likes` may say no with.
pub(crate) struct LikeRefusals;

impl IntoResponses for LikeRefusals {
    fn responses() -> BTreeMap<String, RefOr<ResponseDoc>> {
        refusals(&[Kind::InvalidLike])
    }
}

/// What `POST /likes/batch` may say no with.
pub(crate) struct BatchRefusals;

impl IntoResponses for BatchRefusals {
    fn responses() -> BTreeMap<String, RefOr<ResponseDoc>> {
        refusals(&[Kind::InvalidBatch, Kind::BatchTooLarge])
    }
}

fn refusals(own: &[Kind]) -> BTreeMap<String, RefOr<ResponseDoc>> {
    let mut by_status: BTreeMap<u16, Vec<Kind>> = BTreeMap::new();
    for kind in REFUSALS.iter().chain(own) {
        by_status.entry(kind.status().as_u16()).or_default().push(*kind);
    }
    let text = || HeaderBuilder::new().schema(Some(String::schema()));
    let document = |status: u16, kinds: &[Kind]| {
        let lines = kinds.iter().map(|kind| format!("`{}`: {}", kind.code(), kind.title()));
        let mut response = ResponseBuilder::new()
            .description(lines.collect::<Vec<_>>().join("; "))
            .content("application/problem+json", Content::new(Some(Ref::from_schema_name("Problem"))))
            .header("X-Request-Id", text().description(Some("The request's id")).build());
        if status == 401 {
            response = response.header("WWW-Authenticate", text().description(Some("RFC 6750")).build());
        }
        if [429, 503].contains(&status) {
            let seconds = HeaderBuilder::new().schema(Some(u32::schema())).description(Some("Seconds"));
            response = response.header("Retry-After", seconds.build());
        }
        RefOr::T(response.build())
    };
    by_status.iter().map(|(status, kinds)| (status.to_string(), document(*status, kinds))).collect()
}

/// The description of the interface, as pretty JSON.
pub(crate) fn document() -> String {
    let mut api = Api::openapi();
    env!("CARGO_PKG_VERSION").clone_into(&mut api.info.version);
    let example = |(name, language, code): &(&str, &str, &str)| {
        format!(
            "\n\n<details><summary>A caller in {name}</summary>\n\n```{language}\n{code}```\n\n</details>"
        )
    };
    api.info.description = Some(DESCRIPTION.to_owned() + &EXAMPLES.iter().map(example).collect::<String>());
    api.to_pretty_json().unwrap_or_default() + "\n"
}

/// What is served for reading.
pub(crate) fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let json = Bytes::from(document());
    let config = Arc::new(Config::from("../openapi.json").validator_url("none").try_it_out_enabled(true));
    let home = Arc::clone(&config);
    let document = move || async move { ([(header::CONTENT_TYPE, "application/json")], json) };
    Router::new()
        .route("/openapi.json", get(document))
        // Relative, so that it is right behind a gateway that adds a prefix.
        .route(
            "/docs",
            get(|| async { (axum::http::StatusCode::MOVED_PERMANENTLY, [(header::LOCATION, "docs/")]) }),
        )
        .route("/docs/", get(move || async move { page("index.html", home) }))
        .route("/docs/{*page}", get(move |Path(path): Path<String>| async move { page(&path, config) }))
}

fn page(path: &str, config: Arc<Config<'static>>) -> Response {
    let Ok(Some(file)) = serve(path, config) else { return Problem::NotFound.into_response() };
    // It is in the program itself: not copied for anybody who asks for it and doesn't read it.
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
