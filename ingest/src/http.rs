//! What callers can ask: `POST /likes` and `POST /likes/batch`.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    Json, Router,
    body::{Body, HttpBody},
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::post,
};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::Serialize;
use shared::like::Like;
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::timeout,
};
use tokio_util::task::TaskTracker;
use tower_http::catch_panic::CatchPanicLayer;
use uuid::Uuid;

use crate::{
    backlog::Backlog,
    config::Settings,
    like_request::{self, BadBatch, BadItem, BadRequest, BatchRequest},
    metrics::Metrics,
    problem::Problem,
    publish::{Accepted, PublishError},
};

/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// How much of a body that is too long is read all the same.
const MAX_DISCARDED_BYTES: usize = 1 << 20;

/// In what portions memory for batches is given out.
const MEMORY_UNIT_BYTES: usize = 1 << 10;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const MAX_REQUEST_ID_BYTES: usize = 128;

/// Keeps likes.
pub trait Keep: Send + Sync + 'static {
    /// Waits until the like is safe.
    ///
    /// # Errors
    /// When it is not known to be.
    fn keep(&self, like: Like) -> impl Future<Output = Result<Accepted, PublishError>> + Send;

    /// Waits until all of them are safe.
    ///
    /// # Errors
    /// When not all of them are known to be. Some may be all the same.
    fn keep_all(&self, likes: Vec<Like>) -> impl Future<Output = Result<(), PublishError>> + Send;
}

/// What the handlers need.
pub(crate) struct Service<K> {
    pub(crate) keep: K,
    pub(crate) backlog: Arc<Backlog>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) max_body_bytes: usize,
    pub(crate) batches: BatchLimits,
    /// Tracks the requests in flight.
    pub(crate) requests: TaskTracker,
}

/// What batches may be.
pub(crate) struct BatchLimits {
    max_likes: usize,
    max_body_bytes: usize,
    /// A permit a [`MEMORY_UNIT_BYTES`].
    memory: Semaphore,
}

impl BatchLimits {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self {
            max_likes: settings.ingest_batch_likes as usize,
            max_body_bytes: settings.ingest_batch_body.0,
            memory: Semaphore::new(settings.ingest_batch_memory.0.div_ceil(MEMORY_UNIT_BYTES)),
        }
    }

    /// Memory for a body, or nothing when others have it.
    fn room(&self, body: &Body) -> Result<SemaphorePermit<'_>, Problem> {
        // What doesn't say how long it is may be as long as is allowed.
        let bytes = body
            .size_hint()
            .exact()
            .map_or(self.max_body_bytes, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
        let units = bytes.min(self.max_body_bytes).div_ceil(MEMORY_UNIT_BYTES);
        let room = self.memory.try_acquire_many(u32::try_from(units).unwrap_or(u32::MAX));
        room.map_err(|_| Problem::Publish(PublishError::QueueFull))
    }
}

/// What is served to callers.
pub(crate) fn router<K: Keep>(service: Service<K>) -> Router {
    let service = Arc::new(service);
    Router::new()
        .route("/likes", post(like::<K>).fallback(|| async { Problem::MethodNotAllowed }))
        .route("/likes/batch", post(batch::<K>).fallback(|| async { Problem::MethodNotAllowed }))
        .fallback(|| async { Problem::NotFound })
        .layer(CatchPanicLayer::custom(|_: Box<dyn std::any::Any + Send>| Problem::Internal.into_response()))
        .layer(middleware::from_fn_with_state(Arc::clone(&service), with_request_id::<K>))
        .with_state(service)
}

/// The body of a 202.
#[derive(Serialize)]
struct LikeAccepted<'a> {
    id: &'a str,
    partition: u16,
}

async fn like<K: Keep>(
    State(service): State<Arc<Service<K>>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let received_at_us = now_us();
    if !is_of_type(&headers, "application/json") {
        return Err(Problem::UnsupportedMediaType);
    }
    let sender_waits = headers.contains_key(header::EXPECT);
    let body = read_body(body, service.max_body_bytes, sender_waits).await?;
    let like = like_request::parse(&body, received_at_us).map_err(|bad| match bad {
        BadRequest::Json(why) => Problem::InvalidJson(why),
        BadRequest::Like(why) => Problem::InvalidLike(why),
    })?;
    if service.backlog.is_full() {
        return Err(Problem::BacklogFull);
    }
    let Accepted { entry_id, partition } = service.keep.keep(like).await.map_err(Problem::Publish)?;
    let accepted = LikeAccepted { id: &entry_id, partition: partition.number() };
    Ok((StatusCode::ACCEPTED, Json(accepted)).into_response())
}

/// The body of a 202 for a batch.
#[derive(Serialize)]
struct BatchAccepted<'a> {
    accepted: usize,
    rejected: usize,
    errors: &'a [BadItem],
}

async fn batch<K: Keep>(
    State(service): State<Arc<Service<K>>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let received_at_us = now_us();
    let limits = &service.batches;
    let is_lines = is_of_type(&headers, "application/x-ndjson");
    if !is_lines && !is_of_type(&headers, "application/json") {
        return Err(Problem::UnsupportedMediaType);
    }
    if service.backlog.is_full() {
        return Err(Problem::BacklogFull);
    }
    let _room = limits.room(&body)?;
    let sender_waits = headers.contains_key(header::EXPECT);
    let body = read_body(body, limits.max_body_bytes, sender_waits).await?;
    let parse = if is_lines { like_request::parse_lines } else { like_request::parse_array };
    let BatchRequest { likes, bad } =
        parse(&body, received_at_us, limits.max_likes).map_err(|error| match error {
            BadBatch::Json(why) => Problem::InvalidJson(why),
            BadBatch::TooMany(max_likes) => Problem::BatchTooLarge { max_likes },
        })?;
    if likes.is_empty() {
        return Err(Problem::InvalidBatch(bad));
    }
    let accepted = likes.len();
    service.keep.keep_all(likes).await.map_err(Problem::Publish)?;
    let accepted = BatchAccepted { accepted, rejected: bad.len(), errors: &bad };
    Ok((StatusCode::ACCEPTED, Json(accepted)).into_response())
}

fn is_of_type(headers: &HeaderMap, wanted: &str) -> bool {
    let media_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = media_type.and_then(|value| value.split(';').next());
    essence.is_some_and(|essence| essence.trim().eq_ignore_ascii_case(wanted))
}

/// `sender_waits` says that none of the body is sent before we ask for it: then there is no need to, if it is too long.
async fn read_body(mut body: Body, max_bytes: usize, sender_waits: bool) -> Result<Bytes, Problem> {
    if sender_waits && body.size_hint().lower() > max_bytes as u64 {
        return Err(Problem::BodyTooLarge { max_bytes });
    }
    let read = async {
        match Limited::new(&mut body, max_bytes).collect().await {
            Ok(collected) => Ok(collected.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => {
                discard(&mut body).await;
                Err(Problem::BodyTooLarge { max_bytes })
            }
            Err(_) => Err(Problem::BodyIncomplete),
        }
    };
    timeout(BODY_TIMEOUT, read).await.unwrap_or(Err(Problem::BodyTimeout))
}

/// Reads on for a while: a caller that is still sending when its connection is closed may never see the answer.
async fn discard(body: &mut Body) {
    let mut rest = Limited::new(body, MAX_DISCARDED_BYTES);
    while let Some(Ok(_)) = rest.frame().await {}
}

/// Microseconds since the Unix epoch.
fn now_us() -> i64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX)
}

/// Gives every response the request's id, and every problem its body.
async fn with_request_id<K: Keep>(
    State(service): State<Arc<Service<K>>>,
    request: Request,
    next: Next,
) -> Response {
    let _in_flight = service.requests.token();
    let id = request_id(request.headers());
    let mut response = next.run(request).await;
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        service.metrics.refused(problem.code());
        tracing::debug!(request_id = %String::from_utf8_lossy(id.as_bytes()), code = problem.code(), "refused");
        response = problem.render(id.to_str().unwrap_or_default());
    }
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

/// The caller's own id where it is harmless to repeat, or a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let harmless = |id: &&HeaderValue| {
        (1..=MAX_REQUEST_ID_BYTES).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic)
    };
    headers.get(REQUEST_ID).filter(harmless).cloned().unwrap_or_else(|| {
        let mut text = Uuid::encode_buffer();
        let text = Uuid::new_v4().simple().encode_lower(&mut text);
        HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static("unknown"))
    })
}
