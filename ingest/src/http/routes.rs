//! The handlers of `POST /likes` and `POST /likes/batch`.

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
    problem::{Kind, Problem, whole_seconds},
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

/// Request headers, for the OpenAPI document.
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
pub(super) struct LikeAccepted<'a> {
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

/// What of a batch is safe in the queue
#[derive(Serialize, ToSchema)]
pub(super) struct BatchAccepted<'a> {
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
    let reserve = |bytes| memory.grow(bytes);
    let body = body::read(&headers, body, limits.max_batch_body_bytes, limits.body_timeout, reserve).await?;
    let mut batch = parse(&body, received_at_us, limits.max_batch_likes)?;
    if let Some((index, _)) = batch.indexed().find(|(_, like)| !principal.may_write(like)) {
        return Err(Problem::other_user(Some(index)));
    }
    if let Some(exceeded) = charge_batch(&limits.quotas, &mut batch)
        && batch.likes.is_empty()
    {
        return Err(exceeded.into());
    }
    let BatchRequest { likes, bad } = batch;
    memory.grow(body.len() + bad.iter().map(BadItem::json_bytes).sum::<usize>())?;
    if likes.is_empty() {
        return Ok(memory.hold_until_sent(Problem::invalid_batch(bad).into_response()));
    }
    let accepted = likes.len();
    service.sink.publish_batch(likes, trace::context(span.as_deref())).await?;
    let accepted = BatchAccepted { accepted, rejected: bad.len(), errors: &bad };
    Ok(memory.hold_until_sent((StatusCode::ACCEPTED, Json(accepted)).into_response()))
}

/// Charges the likes of a batch to the quotas of their users, and rejects those over their quota. Returns the one with
/// the longest wait.
fn charge_batch(quotas: &Quotas, batch: &mut BatchRequest) -> Option<QuotaExceeded> {
    let mut longest: Option<QuotaExceeded> = None;
    batch.reject(|like| {
        let exceeded = quotas.charge_like(like.user_id()).err()?;
        if longest.is_none_or(|longest| longest.wait < exceeded.wait) {
            longest = Some(exceeded);
        }
        let why = format!(
            "user_id {} has used up the quota: send it again in {} s",
            like.user_id(),
            whole_seconds(exceeded.wait)
        );
        Some(("rate-limited", why))
    });
    longest
}

/// Microseconds since the Unix epoch.
fn now_us() -> i64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX)
}
