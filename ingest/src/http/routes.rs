//! Handlers of `POST /likes` and `POST /likes/batch`.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use axum::{
    Extension, Json,
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use shared::telemetry::{names, spans::Span};
use utoipa::{IntoParams, ToSchema};

use super::{
    body,
    problem::{Kind, Problem, is_zero, whole_seconds},
    problem_docs::{BatchProblems, LikeProblems},
    request::{self, BadItem, BatchRequest, LikeArray, LikeRequest},
    service::Service,
    trace,
};
use crate::{
    edge::quotas::{QuotaExceeded, Quotas},
    publish::sink::{Accepted, LikeSink},
};

const JSON: &str = "application/json";
const NDJSON: &str = "application/x-ndjson";

/// Optional request headers, for the OpenAPI document.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "describes headers that are read one by one")]
struct CallerHeaders {
    /// Accepted and ignored: user and post identify a like, so the same like is stored once with any key
    #[param(rename = "Idempotency-Key", required = false)]
    idempotency_key: String,
    /// Id of the request, up to 128 visible ASCII characters. Returned in the response; generated if absent or invalid
    #[param(rename = "X-Request-Id", required = false)]
    request_id: String,
}

/// A like that the queue has
#[derive(Serialize, ToSchema)]
pub(super) struct LikeAccepted<'a> {
    /// Id of the stream entry that contains the like
    #[schema(example = "1700000000000-0")]
    id: &'a str,
    /// Partition of the entry's stream
    #[schema(example = 7)]
    partition: u16,
}

/// Publish a like
///
/// Responds when the queue has the like. The request is idempotent: a like of one user for one post is stored once.
#[utoipa::path(
    post,
    path = "/likes",
    tag = "likes",
    operation_id = "like",
    params(CallerHeaders),
    request_body(content = LikeRequest, content_type = "application/json"),
    responses(
        (status = 202, description = "The queue has the like", body = LikeAccepted,
         headers(("X-Request-Id" = String, description = "Id of the request"))),
        LikeProblems,
    ),
    security((), ("token" = []), ("key" = [])),
)]
pub(super) async fn post_like<S: LikeSink>(
    State(service): State<Arc<Service<S>>>,
    span: Option<Extension<Span>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let received_at_us = now_us();
    let limits = &service.limits;
    let principal = service.auth.authenticate(&headers).await?;
    if !body::is_of_type(&headers, JSON) {
        return Err(Kind::UnsupportedMediaType.into());
    }
    let body = body::read(&headers, body, limits.max_body_bytes, limits.body_timeout, |_| Ok(())).await?;
    let like = request::parse(&body, received_at_us)?;
    if !principal.may_write(&like) {
        return Err(Problem::other_user(None));
    }
    service.refuse_over_backlog_limit()?;
    limits.quotas.charge_like(like.user_id())?;
    let Accepted { entry_id, partition } =
        service.sink.publish(like, trace::context(span.as_deref())).await?;
    if let Some(span) = span {
        span.set(names::MESSAGING_MESSAGE_ID, entry_id.to_string());
    }
    let accepted = LikeAccepted { id: &entry_id, partition: partition.number() };
    Ok((StatusCode::ACCEPTED, Json(accepted)).into_response())
}

/// Accepted and rejected elements of a batch
#[derive(Serialize, ToSchema)]
pub(super) struct BatchAccepted<'a> {
    /// Number of likes that the queue has
    #[schema(example = 9997)]
    accepted: usize,
    /// Number of elements that were not accepted
    #[schema(example = 1)]
    rejected: usize,
    /// One error per rejected element, ordered by index, up to 1000 errors or 128 KiB
    errors: &'a [BadItem],
    /// Number of further errors. Absent if all are listed
    #[serde(skip_serializing_if = "is_zero")]
    #[schema(required = false)]
    errors_omitted: usize,
}

/// Publish a batch of likes
///
/// The body is a JSON array of likes, or NDJSON: one like per line. Invalid elements are reported by index, from 0; the other
/// likes are accepted. Responds when the queue has all of them. After a 503, some likes of the batch may have been accepted:
/// send the whole batch again.
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
        (status = 202, description = "The queue has all valid likes", body = BatchAccepted,
         headers(("X-Request-Id" = String, description = "Id of the request"))),
        BatchProblems,
    ),
    security((), ("token" = []), ("key" = [])),
)]
pub(super) async fn post_batch<S: LikeSink>(
    State(service): State<Arc<Service<S>>>,
    span: Option<Extension<Span>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let received_at_us = now_us();
    let limits = &service.limits;
    let principal = service.auth.authenticate(&headers).await?;
    let parse = if body::is_of_type(&headers, NDJSON) {
        request::parse_lines
    } else if body::is_of_type(&headers, JSON) {
        request::parse_array
    } else {
        return Err(Kind::UnsupportedMediaType.into());
    };
    service.refuse_over_backlog_limit()?;
    let mut memory = limits.batch_memory.reserve()?;
    let reserve = |bytes| memory.resize(bytes);
    let body = body::read(&headers, body, limits.max_batch_body_bytes, limits.body_timeout, reserve).await?;
    memory.resize(request::parsing_bytes(&body, limits.max_batch_likes))?;
    let mut batch = parse(&body, received_at_us, limits.max_batch_likes)?;
    drop(body);
    if let Some((index, _)) = batch.likes.iter().find(|(_, like)| !principal.may_write(like)) {
        return Err(Problem::other_user(Some(*index)));
    }
    if let Some(exceeded) = charge_batch(&limits.quotas, &mut batch)
        && batch.likes.is_empty()
    {
        return Err(exceeded.into());
    }
    memory.resize(batch.bytes())?;
    let BatchRequest { likes, errors } = batch;
    if likes.is_empty() {
        return Ok(memory.hold_until_sent(Problem::invalid_batch(errors).into_response()));
    }
    let accepted = likes.len();
    let likes = likes.into_iter().map(|(_, like)| like).collect();
    service.sink.publish_batch(likes, trace::context(span.as_deref())).await?;
    let accepted = BatchAccepted {
        accepted,
        rejected: errors.rejected(),
        errors: errors.listed(),
        errors_omitted: errors.omitted(),
    };
    Ok(memory.hold_until_sent((StatusCode::ACCEPTED, Json(accepted)).into_response()))
}

/// Charges the likes of a batch to the quotas of their users, and rejects the likes that exceed a quota. Returns the
/// exceeded quota with the longest wait.
fn charge_batch(quotas: &Quotas, batch: &mut BatchRequest) -> Option<QuotaExceeded> {
    let mut longest: Option<QuotaExceeded> = None;
    batch.reject(|like| {
        let exceeded = quotas.charge_like(like.user_id()).err()?;
        if longest.is_none_or(|longest| longest.wait < exceeded.wait) {
            longest = Some(exceeded);
        }
        let detail = format!(
            "the rate limit of user_id {} is exceeded; send the like again after {} s",
            like.user_id(),
            whole_seconds(exceeded.wait)
        );
        Some(("rate-limited", detail))
    });
    longest
}

/// Microseconds since the Unix epoch.
fn now_us() -> i64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX)
}
