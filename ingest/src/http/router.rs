//! The router: routes, fallbacks and layers.

use std::{any::Any, sync::Arc, time::Duration};

use axum::{
    Router,
    http::{HeaderName, HeaderValue, Method, header},
    middleware::from_fn_with_state,
    response::IntoResponse,
    routing::post,
};
use tower_http::{
    catch_panic::CatchPanicLayer,
    cors::{AllowOrigin, CorsLayer},
};

use super::{
    middleware::{self, REQUEST_ID},
    openapi,
    problem::{Kind, Problem},
    routes::{post_batch, post_like},
    service::Service,
};
use crate::{edge::auth::API_KEY, publish::sink::LikeSink};

/// Time that a browser may cache the response to a preflight request.
const CORS_MAX_AGE: Duration = Duration::from_hours(1);

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Builds the router. `docs` enables `GET /openapi.json` and `GET /docs`.
pub(crate) fn router<S: LikeSink>(service: Service<S>, cors: Option<CorsLayer>, docs: bool) -> Router {
    let service = Arc::new(service);
    let mut router =
        Router::new().route("/likes", post(post_like::<S>)).route("/likes/batch", post(post_batch::<S>));
    if docs {
        router = router.merge(openapi::router());
    }
    router = router
        .fallback(|| async { Problem::from(Kind::NotFound) })
        .method_not_allowed_fallback(|| async { Problem::from(Kind::MethodNotAllowed) })
        .layer(CatchPanicLayer::custom(|_: Box<dyn Any + Send>| {
            Problem::from(Kind::Internal).into_response()
        }))
        .layer(from_fn_with_state(Arc::clone(&service), middleware::handle::<S>));
    if let Some(cors) = cors {
        router = router.layer(cors);
    }
    router.with_state(service)
}

/// Returns the CORS layer for these origins, or `None` if there are none.
pub(crate) fn cors(origins: &[HeaderValue]) -> Option<CorsLayer> {
    let any = origins.iter().any(|origin| origin == "*");
    let allowed = if any { AllowOrigin::any() } else { AllowOrigin::list(origins.to_vec()) };
    let headers = [header::CONTENT_TYPE, header::AUTHORIZATION, API_KEY, IDEMPOTENCY_KEY, REQUEST_ID];
    let cors = CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::POST])
        .allow_headers(headers)
        .expose_headers([REQUEST_ID, header::RETRY_AFTER])
        .max_age(CORS_MAX_AGE);
    (!origins.is_empty()).then_some(cors)
}
