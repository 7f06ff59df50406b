//! What callers can ask: `POST /likes` and `POST /likes/batch`, and `openapi` what they can read.

use std::{
    mem,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use axum::{
    Extension, Json, Router,
    body::{Body, HttpBody},
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::post,
};
use http_body_util::{BodyExt, Limited};
use serde::Serialize;
use shared::{
    telemetry::{
        names,
        spans::{self, Span, Tracing},
    },
    wire::like::Like,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_util::task::TaskTracker;
use tower_http::{
    catch_panic::CatchPanicLayer,
    cors::{AllowOrigin, CorsLayer},
};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::{
    backlog::Backlog,
    config::Settings,
    edge::{
        auth::{API_KEY, Access},
        connections::Peer,
        quotas::Quotas,
    },
    http::{
        openapi::{self, BatchRefusals, LikeRefusals},
        problem::{self, Problem},
        request::{self, BadBatch, BadItem, BadRequest, BatchRequest, LikeArray, LikeRequest},
        trace::{self, known_route},
    },
    metrics::{Answered, Metrics},
    publish::group_commit::{Accepted, PublishError, RequestSpan},
};

/// How much of a body that is too long is read all the same.
const MAX_DISCARDED_BYTES: usize = 1 << 20;

/// In what portions memory for batches is given out.
const MEMORY_UNIT_BYTES: usize = 1 << 10;

/// How long a browser may remember what pages of another origin may do.
const CORS_MAX_AGE: Duration = Duration::from_hours(1);

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const MAX_REQUEST_ID_BYTES: usize = 128;

/// Keeps likes.
pub trait Keep: Send + Sync + 'static {
    /// Waits until the like is safe.
    ///
    /// # Errors
    /// When it is not known to be.
    fn keep(
        &self,
        like: Like,
        span: RequestSpan,
    ) -> impl Future<Output = Result<Accepted, PublishError>> + Send;

    /// Waits until all of them are safe.
    ///
    /// # Errors
    /// When not all of them are known to be. Some may be all the same.
    fn keep_all(
        &self,
        likes: Vec<Like>,
        span: RequestSpan,
    ) -> impl Future<Output = Result<(), PublishError>> + Send;
}

/// What the handlers need.
pub(crate) struct Service<K> {
    pub(crate) keep: K,
    pub(crate) backlog: Arc<Backlog>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) tracing: Tracing,
    pub(crate) access: Access,
    pub(crate) limits: RequestLimits,
    /// Tracks the requests in flight.
    pub(crate) requests: TaskTracker,
}

impl<K> Service<K> {
    /// Lets a request in, or says why not.
    fn enter(&self, request: &Request) -> Result<OwnedSemaphorePermit, Problem> {
        if let Some(Peer(address)) = request.extensions().get() {
            let taken = self.limits.quotas.take_request(*address, request.headers());
            taken.map_err(|wait| Problem::RateLimited { whose: problem::Quota::Address, wait })?;
        }
        Arc::clone(&self.limits.in_flight).try_acquire_owned().map_err(|_| Problem::Overloaded)
    }
}

/// What requests may be.
pub(crate) struct RequestLimits {
    max_body_bytes: usize,
    body_timeout: Duration,
    batches: BatchLimits,
    quotas: Quotas,
    /// A permit for each request that may be in flight.
    in_flight: Arc<Semaphore>,
}

impl RequestLimits {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self {
            max_body_bytes: settings.ingest_max_body.0,
            body_timeout: settings.ingest_body_timeout,
            batches: BatchLimits::new(settings),
            quotas: Quotas::new(&settings.limits),
            in_flight: Arc::new(Semaphore::new(settings.limits.ingest_max_requests as usize)),
        }
    }
}

/// What batches may be.
struct BatchLimits {
    max_likes: usize,
    max_body_bytes: usize,
    /// A permit a [`MEMORY_UNIT_BYTES`].
    memory: Arc<Semaphore>,
}

impl BatchLimits {
    fn new(settings: &Settings) -> Self {
        Self {
            max_likes: settings.ingest_batch_likes as usize,
            max_body_bytes: settings.ingest_batch_body.0,
            memory: Arc::new(Semaphore::new(settings.ingest_batch_memory.0.div_ceil(MEMORY_UNIT_BYTES))),
        }
    }

    /// Memory for the first of a body, to grow with it: what is only announced takes none.
    fn room(&self) -> Result<Room, Problem> {
        let held = Arc::clone(&self.memory).try_acquire_owned().map_err(|_| Problem::Overloaded)?;
        Ok(Room { memory: Arc::clone(&self.memory), held })
    }
}

/// The memory of one batch: of its body, and of what is said of it.
struct Room {
    memory: Arc<Semaphore>,
    held: OwnedSemaphorePermit,
}

impl Room {
    /// Makes it so large, if others leave as much.
    fn grow(&mut self, bytes: usize) -> Result<(), Problem> {
        let more = bytes.div_ceil(MEMORY_UNIT_BYTES).saturating_sub(self.held.num_permits());
        let more = Arc::clone(&self.memory).try_acquire_many_owned(u32::try_from(more).unwrap_or(u32::MAX));
        self.held.merge(more.map_err(|_| Problem::Overloaded)?);
        Ok(())
    }

    /// Stays with an answer until that is sent, as all of its extensions do.
    fn stay_with(self, mut response: Response) -> Response {
        response.extensions_mut().insert(Arc::new(self));
        response
    }
}

/// What is served to callers. `cors` is for pages of other origins, `docs` says whether there is something to read.
pub(crate) fn router<K: Keep>(service: Service<K>, cors: Option<CorsLayer>, docs: bool) -> Router {
    let service = Arc::new(service);
    let mut router = Router::new().route("/likes", post(like::<K>)).route("/likes/batch", post(batch::<K>));
    if docs {
        router = router.merge(openapi::router());
    }
    router = router
        .fallback(|| async { Problem::NotFound })
        .method_not_allowed_fallback(|| async { Problem::MethodNotAllowed })
        .layer(CatchPanicLayer::custom(|_: Box<dyn std::any::Any + Send>| Problem::Internal.into_response()))
        .layer(middleware::from_fn_with_state(Arc::clone(&service), at_the_edge::<K>));
    if let Some(cors) = cors {
        router = router.layer(cors);
    }
    router.with_state(service)
}

/// What pages of these origins may do: what any caller may, short of reading what they shouldn't need.
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

/// What callers may send along.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "describes headers that are read one by one")]
struct CallerHeaders {
    /// Taken and not needed: user and post are the key of a like. Two requests with the same like are one like, with
    /// whatever keys
    #[param(rename = "Idempotency-Key", required = false)]
    idempotency_key: String,
    /// Comes back in the answer, where it is up to 128 visible ASCII characters; else we make one
    #[param(rename = "X-Request-Id", required = false)]
    request_id: String,
}

/// The like is safe in the queue
#[derive(Serialize, ToSchema)]
pub(crate) struct LikeAccepted<'a> {
    /// The stream entry that it is in
    #[schema(example = "1700000000000-0")]
    id: &'a str,
    /// The partition whose stream that is
    #[schema(example = 7)]
    partition: u16,
}

/// Take a like
///
/// Answers when the like is safe in the queue. Of one user and one post there is only ever one like, so the same may be
/// sent again at any time.
#[utoipa::path(
    post,
    path = "/likes",
    tag = "likes",
    operation_id = "like",
    params(CallerHeaders),
    request_body(content = LikeRequest, content_type = "application/json"),
    responses(
        (status = 202, description = "The like is safe", body = LikeAccepted,
         headers(("X-Request-Id" = String, description = "The request's id"))),
        LikeRefusals,
    ),
    security((), ("token" = []), ("key" = [])),
)]
pub(crate) async fn like<K: Keep>(
    State(service): State<Arc<Service<K>>>,
    span: Option<Extension<Span>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let received_at_us = now_us();
    let writer = service.access.admit(&headers).await?;
    if !is_of_type(&headers, "application/json") {
        return Err(Problem::UnsupportedMediaType);
    }
    let limits = &service.limits;
    let body = read_body(&headers, body, limits.max_body_bytes, limits.body_timeout, |_| Ok(())).await?;
    let like = request::parse(&body, received_at_us).map_err(|bad| match bad {
        BadRequest::Json(why) => Problem::InvalidJson(why),
        BadRequest::Like(why) => Problem::InvalidLike(why),
    })?;
    if !writer.may_write(&like) {
        return Err(Problem::OtherUser { index: None });
    }
    if service.backlog.is_full() {
        return Err(Problem::BacklogFull);
    }
    let taken = limits.quotas.take_like(like.user_id());
    taken.map_err(|wait| Problem::RateLimited { whose: problem::Quota::User, wait })?;
    let kept = service.keep.keep(like, trace::context(span.as_deref())).await;
    let Accepted { entry_id, partition } = kept.map_err(Problem::Publish)?;
    if let Some(span) = span {
        span.set(names::MESSAGING_MESSAGE_ID, entry_id.to_string());
    }
    let accepted = LikeAccepted { id: &entry_id, partition: partition.number() };
    Ok((StatusCode::ACCEPTED, Json(accepted)).into_response())
}

/// What of a batch is safe in the queue
#[derive(Serialize, ToSchema)]
pub(crate) struct BatchAccepted<'a> {
    /// How many likes are
    #[schema(example = 9997)]
    accepted: usize,
    /// How many are not
    #[schema(example = 1)]
    rejected: usize,
    /// Why, for each of those, in their order
    errors: &'a [BadItem],
}

/// Take many likes
///
/// As a JSON array, or as NDJSON: the same without brackets and commas, one like a line. What is no like is named by its index, from 0; the others are taken, and the answer
/// comes when all of them are safe in the queue. A batch that is answered with 503 may have been taken in part: send all of it again.
#[utoipa::path(
    post,
    path = "/likes/batch",
    tag = "likes",
    operation_id = "likes",
    params(CallerHeaders),
    request_body(content(
        (inline(LikeArray) = "application/json"),
        (inline(LikeArray) = "application/x-ndjson", example =
            "{\"user_id\": 7, \"post_id\": 42}\n{\"user_id\": 8, \"post_id\": 42}\n"),
    )),
    responses(
        (status = 202, description = "The good likes are safe", body = BatchAccepted,
         headers(("X-Request-Id" = String, description = "The request's id"))),
        BatchRefusals,
    ),
    security((), ("token" = []), ("key" = [])),
)]
pub(crate) async fn batch<K: Keep>(
    State(service): State<Arc<Service<K>>>,
    span: Option<Extension<Span>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let received_at_us = now_us();
    let (limits, batches) = (&service.limits, &service.limits.batches);
    let writer = service.access.admit(&headers).await?;
    let is_lines = is_of_type(&headers, "application/x-ndjson");
    if !is_lines && !is_of_type(&headers, "application/json") {
        return Err(Problem::UnsupportedMediaType);
    }
    if service.backlog.is_full() {
        return Err(Problem::BacklogFull);
    }
    let mut room = batches.room()?;
    let grow = |bytes| room.grow(bytes);
    let body = read_body(&headers, body, batches.max_body_bytes, limits.body_timeout, grow).await?;
    let parse = if is_lines { request::parse_lines } else { request::parse_array };
    let mut batch = parse(&body, received_at_us, batches.max_likes).map_err(|error| match error {
        BadBatch::Json(why) => Problem::InvalidJson(why),
        BadBatch::TooMany(max_likes) => Problem::BatchTooLarge { max_likes },
    })?;
    if let Some((index, _)) = batch.indexed().find(|(_, like)| !writer.may_write(like)) {
        return Err(Problem::OtherUser { index: Some(index) });
    }
    if let Some(wait) = take_likes(&limits.quotas, &mut batch)
        && batch.likes.is_empty()
    {
        return Err(Problem::RateLimited { whose: problem::Quota::User, wait });
    }
    let BatchRequest { likes, bad } = batch;
    room.grow(body.len() + bad.iter().map(BadItem::json_bytes).sum::<usize>())?;
    if likes.is_empty() {
        return Ok(room.stay_with(Problem::InvalidBatch(bad).into_response()));
    }
    let accepted = likes.len();
    let kept = service.keep.keep_all(likes, trace::context(span.as_deref())).await;
    kept.map_err(Problem::Publish)?;
    let accepted = BatchAccepted { accepted, rejected: bad.len(), errors: &bad };
    Ok(room.stay_with((StatusCode::ACCEPTED, Json(accepted)).into_response()))
}

/// Takes the likes of a batch off the quotas of their users. Those that are over them are bad then; how long to wait
/// until all users could go on.
fn take_likes(quotas: &Quotas, batch: &mut BatchRequest) -> Option<Duration> {
    let mut longest = None;
    batch.reject(|like| {
        let wait = quotas.take_like(like.user_id()).err()?;
        longest = longest.max(Some(wait));
        let why = format!(
            "user_id {} has used up the quota: send it again in {} s",
            like.user_id(),
            problem::whole_seconds(wait)
        );
        Some(("rate-limited", why))
    });
    longest
}

fn is_of_type(headers: &HeaderMap, wanted: &str) -> bool {
    let media_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = media_type.and_then(|value| value.split(';').next());
    essence.is_some_and(|essence| essence.trim().eq_ignore_ascii_case(wanted))
}

/// `grow` is told how much of it is here, and may say that it is too much.
async fn read_body(
    headers: &HeaderMap,
    mut body: Body,
    max_bytes: usize,
    within: Duration,
    mut grow: impl FnMut(usize) -> Result<(), Problem>,
) -> Result<Vec<u8>, Problem> {
    // Who waits for us to ask for the body need not send one that is too long.
    if headers.contains_key(header::EXPECT) && body.size_hint().lower() > max_bytes as u64 {
        return Err(Problem::BodyTooLarge { max_bytes });
    }
    let read = async {
        // Copied, because a part may be a byte that keeps all of what was read with it.
        let mut whole = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| Problem::BodyIncomplete)?;
            let Ok(part) = frame.into_data() else { continue };
            let bytes = whole.len() + part.len();
            let fits =
                if bytes <= max_bytes { grow(bytes) } else { Err(Problem::BodyTooLarge { max_bytes }) };
            if let Err(problem) = fits {
                discard(&mut body).await;
                return Err(problem);
            }
            whole.extend_from_slice(&part);
        }
        Ok(whole)
    };
    timeout(within, read).await.unwrap_or(Err(Problem::BodyTimeout))
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

/// Lets requests in, and gives every response the request's id, and every problem its body. Counts and traces them.
async fn at_the_edge<K: Keep>(
    State(service): State<Arc<Service<K>>>,
    mut request: Request,
    next: Next,
) -> Response {
    let began = Instant::now();
    let _in_flight = service.requests.token();
    let (id, route) = (request_id(request.headers()), known_route(request.uri().path()));
    let active = Active::new(&service.metrics, request.method());
    let span = trace::start(&service.tracing, &request, route, service.metrics.scheme());
    if let Some(span) = &span {
        request.extensions_mut().insert(span.clone());
    }
    let (permit, mut response) = match service.enter(&request) {
        Ok(permit) => (Some(permit), next.run(request).await),
        Err(problem) => (None, problem.into_response()),
    };
    let problem = response.extensions_mut().remove::<Problem>();
    let mut held = mem::take(response.extensions_mut());
    let code = problem.as_ref().map(|problem| problem.kind().code());
    if let Some(problem) = problem {
        let trace_id = spans::trace_id(span.as_ref());
        tracing::debug!(request_id = %String::from_utf8_lossy(id.as_bytes()), code, trace_id, "refused");
        let headers = mem::take(response.headers_mut());
        response = problem.render(id.to_str().unwrap_or_default(), headers);
    }
    response.headers_mut().insert(REQUEST_ID, id);
    held.insert(Arc::new(permit));
    *response.extensions_mut() = held;
    let status = response.status();
    let route = route.filter(|_| status != StatusCode::NOT_FOUND);
    service.metrics.answered(&Answered {
        method: active.method(),
        route,
        status,
        problem: code,
        took: began.elapsed(),
    });
    trace::end(span, status, code);
    response
}

/// A request that has no answer yet, and may never get one: its caller can leave at any time.
struct Active {
    metrics: Arc<Metrics>,
    method: Method,
}

impl Active {
    fn new(metrics: &Arc<Metrics>, method: &Method) -> Self {
        metrics.request_began(method);
        Self { metrics: Arc::clone(metrics), method: method.clone() }
    }

    fn method(&self) -> &Method {
        &self.method
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.metrics.request_ended(&self.method);
    }
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
