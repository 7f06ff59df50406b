//! Renders every error of the HTTP interface as `application/problem+json` (RFC 9457). No other module turns errors into
//! responses.

use std::{borrow::Cow, time::Duration};

use axum::{
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    edge::{
        auth::{AuthError, InvalidCredential, Methods},
        quotas::{QuotaExceeded, QuotaKind},
    },
    http::request::{BadBatch, BadItem, BadRequest, BatchErrors},
    publish::sink::{PublishError, Published},
};

/// Values of `Retry-After`.
const SOON: Option<Duration> = Some(Duration::from_secs(1));
const WHEN_DRAINED: Option<Duration> = Some(Duration::from_secs(5));
const NEVER: Option<Duration> = None;

/// Nothing was published, and a later attempt may succeed.
const NOT_ACCEPTED: &str = "No like was accepted. Send the request again after the time in Retry-After.";
/// The likes may have been published although Redis's reply was lost.
const MAYBE_ACCEPTED: &str =
    "It is unknown whether Redis has the likes. Send the same request again: each like is stored only once.";
const ROUTES: &str = "Send one like with POST /likes, or several with POST /likes/batch.";
const MEDIA_TYPES: &str =
    "Content-Type must be application/json. POST /likes/batch also accepts application/x-ndjson.";
const TIMED_OUT: &str =
    "The body did not arrive within the time limit. Send the request again, and its body without pauses.";
const INCOMPLETE: &str =
    "The connection closed, or the client violated HTTP, before the end of the body. Send the request again.";
/// Problems of this kind set their detail when they are created.
const DYNAMIC: &str = "";

/// Properties that all problems of one kind share.
struct Row {
    status: StatusCode,
    code: &'static str,
    title: &'static str,
    detail: &'static str,
    retry_after: Option<Duration>,
}

macro_rules! kinds {
    ($($kind:ident $status:ident $code:literal $title:literal $detail:ident $retry_after:ident)*) => {
        /// The kind of a problem. Its code is stable for clients, and a label value of metrics.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Kind { $($kind),* }

        impl Kind {
            pub(crate) const ALL: &[Self] = &[$(Self::$kind),*];

            fn row(self) -> &'static Row {
                match self {
                    $(Self::$kind => &Row {
                        status: StatusCode::$status,
                        code: $code,
                        title: $title,
                        detail: $detail,
                        retry_after: $retry_after,
                    }),*
                }
            }
        }
    };
}

kinds! {
    InvalidJson BAD_REQUEST "invalid-json" "The body is not JSON of the expected form" DYNAMIC NEVER
    BodyIncomplete BAD_REQUEST "body-incomplete" "The body is incomplete" INCOMPLETE NEVER
    NoCredential UNAUTHORIZED "no-credential" "A credential is required" DYNAMIC NEVER
    InvalidCredential UNAUTHORIZED "invalid-credential" "The credential is not valid" DYNAMIC NEVER
    OtherUser FORBIDDEN "other-user" "The token belongs to another user" DYNAMIC NEVER
    NotFound NOT_FOUND "not-found" "The path does not exist" ROUTES NEVER
    MethodNotAllowed METHOD_NOT_ALLOWED "method-not-allowed" "The method is not allowed" ROUTES NEVER
    BodyTimeout REQUEST_TIMEOUT "body-timeout" "The body took too long to arrive" TIMED_OUT NEVER
    BodyTooLarge PAYLOAD_TOO_LARGE "body-too-large" "The body is too large" DYNAMIC NEVER
    BatchTooLarge PAYLOAD_TOO_LARGE "batch-too-large" "The batch has too many likes" DYNAMIC NEVER
    UnsupportedMediaType UNSUPPORTED_MEDIA_TYPE "unsupported-media-type" "The media type is not supported" MEDIA_TYPES NEVER
    InvalidLike UNPROCESSABLE_ENTITY "invalid-like" "The body is not a valid like" DYNAMIC NEVER
    InvalidBatch UNPROCESSABLE_ENTITY "invalid-batch" "The batch has no valid likes" DYNAMIC NEVER
    RateLimited TOO_MANY_REQUESTS "rate-limited" "The rate limit is exceeded" DYNAMIC NEVER
    Internal INTERNAL_SERVER_ERROR "internal" "Internal server error" MAYBE_ACCEPTED NEVER
    BacklogFull SERVICE_UNAVAILABLE "backlog-full" "The backlog is full" NOT_ACCEPTED WHEN_DRAINED
    Overloaded SERVICE_UNAVAILABLE "overloaded" "The server is overloaded" NOT_ACCEPTED SOON
    RedisOutOfMemory SERVICE_UNAVAILABLE "redis-out-of-memory" "Redis is out of memory" DYNAMIC WHEN_DRAINED
    RedisReadOnly SERVICE_UNAVAILABLE "redis-read-only" "Redis is read-only" DYNAMIC WHEN_DRAINED
    RedisRefused SERVICE_UNAVAILABLE "redis-refused" "Redis rejected the write" DYNAMIC WHEN_DRAINED
    RedisUnconfirmed SERVICE_UNAVAILABLE "redis-unconfirmed" "Redis did not confirm the write" MAYBE_ACCEPTED SOON
    RedisUnavailable SERVICE_UNAVAILABLE "redis-unavailable" "Redis is unavailable" DYNAMIC SOON
}

impl Kind {
    pub(crate) fn status(self) -> StatusCode {
        self.row().status
    }

    /// Returns the last part of the problem's `type`.
    pub(crate) fn code(self) -> &'static str {
        self.row().code
    }

    pub(crate) fn title(self) -> &'static str {
        self.row().title
    }
}

/// Cause of a refused request, and how the client can correct it.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    kind: Kind,
    detail: Cow<'static, str>,
    retry_after: Option<Duration>,
    /// The value of WWW-Authenticate.
    challenge: Option<&'static str>,
    /// The invalid items of a batch.
    errors: BatchErrors,
}

/// Creates a problem with the detail that all problems of its kind share.
impl From<Kind> for Problem {
    fn from(kind: Kind) -> Self {
        let Row { detail, retry_after, .. } = *kind.row();
        Self { kind, detail: detail.into(), retry_after, challenge: None, errors: BatchErrors::default() }
    }
}

impl From<BadRequest> for Problem {
    fn from(error: BadRequest) -> Self {
        match error {
            BadRequest::Json(why) => Self::new(Kind::InvalidJson, why),
            BadRequest::Like(why) => Self::new(Kind::InvalidLike, why),
        }
    }
}

impl From<BadBatch> for Problem {
    fn from(error: BadBatch) -> Self {
        match error {
            BadBatch::Json(why) => Self::new(Kind::InvalidJson, why),
            BadBatch::TooMany(max_likes) => {
                let detail = format!(
                    "A batch must have at most {max_likes} likes. No like was accepted; split the batch."
                );
                Self::new(Kind::BatchTooLarge, detail)
            }
        }
    }
}

impl From<AuthError> for Problem {
    fn from(error: AuthError) -> Self {
        let (problem, methods) = match &error {
            AuthError::NoCredential { methods } => {
                let detail = match methods {
                    Methods { token: true, api_key: true } => {
                        "Send the header Authorization: Bearer <token>, or the header X-Api-Key: <key>."
                    }
                    Methods { api_key: true, .. } => "Send the header X-Api-Key: <key>.",
                    Methods { .. } => "Send the header Authorization: Bearer <token>.",
                };
                (Self::new(Kind::NoCredential, detail), methods)
            }
            AuthError::InvalidCredential { error, methods } => {
                (Self::new(Kind::InvalidCredential, error.to_string()), methods)
            }
        };
        // RFC 6750, section 3: only an invalid token gets an error code. A 401 must have a challenge, and no scheme is
        // registered for API keys.
        let challenge = match error {
            _ if !methods.token => "ApiKey",
            AuthError::NoCredential { .. }
            | AuthError::InvalidCredential { error: InvalidCredential::ApiKey, .. } => "Bearer",
            AuthError::InvalidCredential { .. } => "Bearer error=\"invalid_token\"",
        };
        Self { challenge: Some(challenge), ..problem }
    }
}

impl From<QuotaExceeded> for Problem {
    fn from(QuotaExceeded { quota, wait }: QuotaExceeded) -> Self {
        let detail = match quota {
            QuotaKind::User => {
                "The rate limit for likes of this user is exceeded. No like was accepted. Send the request again after the time in Retry-After."
            }
            QuotaKind::Address => {
                "The rate limit for requests from this address is exceeded. No like was accepted. Send the request again after the time in Retry-After."
            }
        };
        Self { retry_after: Some(wait), ..Self::new(Kind::RateLimited, detail) }
    }
}

impl From<PublishError> for Problem {
    fn from(error: PublishError) -> Self {
        let (kind, cause, published) = match error {
            PublishError::QueueFull => return Kind::Overloaded.into(),
            PublishError::Unconfirmed => return Kind::RedisUnconfirmed.into(),
            PublishError::OutOfMemory(published) => {
                (Kind::RedisOutOfMemory, "Redis is out of memory (OOM).".into(), published)
            }
            PublishError::ReadOnly(published) => {
                (Kind::RedisReadOnly, "Redis is a replica and refuses writes (READONLY).".into(), published)
            }
            PublishError::Refused(class, published) => {
                (Kind::RedisRefused, format!("Redis rejected the write ({class})."), published)
            }
            PublishError::Unavailable(class, published) => {
                (Kind::RedisUnavailable, format!("Redis is unavailable ({class})."), published)
            }
        };
        let advice = match published {
            Published::No => NOT_ACCEPTED,
            Published::Unknown => MAYBE_ACCEPTED,
        };
        Self::new(kind, format!("{cause} {advice}"))
    }
}

/// Details of a refused request (RFC 9457)
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub(crate) struct ProblemBody<'a> {
    /// `urn:likestream:problem:` followed by the code. Stable
    #[schema(example = "urn:likestream:problem:invalid-like", pattern = "^urn:likestream:problem:[a-z-]+$")]
    r#type: String,
    /// Summary of the code
    title: &'a str,
    /// HTTP status code
    #[schema(minimum = 400, maximum = 599)]
    status: u16,
    /// Cause of the error, and how to correct it. The text may change
    detail: &'a str,
    /// Id of the request, as in the header `X-Request-Id` and in the server's log
    request_id: &'a str,
    /// Errors of single elements of a batch, up to 1000 errors or 128 KiB
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    #[schema(required = false)]
    errors: &'a [BadItem],
    /// Number of further errors. Absent if all are listed
    #[serde(skip_serializing_if = "is_zero")]
    #[schema(required = false)]
    errors_omitted: usize,
}

impl Problem {
    fn new(kind: Kind, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { detail: detail.into(), ..Self::from(kind) }
    }

    /// Creates the problem of a batch without a valid item.
    pub(crate) fn invalid_batch(errors: BatchErrors) -> Self {
        let detail =
            errors.listed().first().map_or("The batch is empty. Send at least one like.".into(), |first| {
                Cow::from(format!("No like was accepted. Element at index {}: {}", first.index, first.detail))
            });
        Self { errors, ..Self::new(Kind::InvalidBatch, detail) }
    }

    pub(crate) fn body_too_large(max_bytes: usize) -> Self {
        Self::new(Kind::BodyTooLarge, format!("The body must have at most {max_bytes} bytes."))
    }

    /// Creates the problem of a user's token with a like of another user. `index` is the position of the like in its batch.
    pub(crate) fn other_user(index: Option<usize>) -> Self {
        let detail = index.map_or("user_id must equal the token's sub.".into(), |index| {
            Cow::from(format!(
                "No like was accepted. Element at index {index}: user_id must equal the token's sub."
            ))
        });
        Self::new(Kind::OtherUser, detail)
    }

    pub(crate) fn code(&self) -> &'static str {
        self.kind.code()
    }

    /// Renders the whole response. `headers` are the headers that the router has already set, such as `Allow`.
    pub(crate) fn render(&self, request_id: &str, headers: HeaderMap) -> Response {
        let Row { status, code, title, .. } = *self.kind.row();
        let body = ProblemBody {
            r#type: format!("urn:likestream:problem:{code}"),
            title,
            status: status.as_u16(),
            detail: &self.detail,
            request_id,
            errors: self.errors.listed(),
            errors_omitted: self.errors.omitted(),
        };
        let json = serde_json::to_vec(&body).unwrap_or_default();
        let mut response = (status, headers, json).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.remove(header::CONTENT_LENGTH);
        if let Some(wait) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(whole_seconds(wait)));
        }
        if let Some(challenge) = self.challenge {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        response
    }
}

/// Returns whether a field of a response can be left out.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde requires")]
pub(crate) fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// Returns the wait in whole seconds, rounded up: an earlier retry would be refused again.
pub(crate) fn whole_seconds(wait: Duration) -> u64 {
    (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)
}

/// Passes the problem to the middleware, which renders it with the id of the request.
impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.kind.status().into_response();
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: Methods = Methods { token: true, api_key: true };

    fn header(problem: &Problem, name: header::HeaderName) -> Option<String> {
        let response = problem.render("id", HeaderMap::new());
        response.headers().get(name).map(|value| value.to_str().unwrap().to_owned())
    }

    #[test]
    fn every_kind_without_a_fixed_detail_has_a_specific_one() {
        let without: Vec<Kind> =
            Kind::ALL.iter().copied().filter(|kind| kind.row().detail == DYNAMIC).collect();
        let mut errors = BatchErrors::default();
        errors.push(BadItem { index: 3, code: "invalid-like", detail: "why".to_owned() });
        let auth = AuthError::InvalidCredential { error: InvalidCredential::Expired, methods: BOTH };
        let quota = QuotaExceeded { quota: QuotaKind::User, wait: Duration::from_millis(1) };
        let problems = [
            BadRequest::Json("why".to_owned()).into(),
            AuthError::NoCredential { methods: BOTH }.into(),
            auth.into(),
            Problem::other_user(Some(3)),
            Problem::body_too_large(7),
            BadBatch::TooMany(7).into(),
            BadRequest::Like("why".to_owned()).into(),
            Problem::invalid_batch(errors),
            quota.into(),
            PublishError::OutOfMemory(Published::No).into(),
            PublishError::ReadOnly(Published::No).into(),
            PublishError::Refused("MISCONF", Published::No).into(),
            PublishError::Unavailable("timeout", Published::Unknown).into(),
        ];
        assert_eq!(problems.each_ref().map(|problem| problem.kind).as_slice(), without);
        assert!(problems.iter().all(|problem| !problem.detail.is_empty()));
    }

    #[test]
    fn refusals_of_redis_name_their_class_and_whether_a_like_may_be_accepted() {
        let detail = |error: PublishError| Problem::from(error).detail.into_owned();
        assert_eq!(
            detail(PublishError::Refused("MISCONF", Published::No)),
            "Redis rejected the write (MISCONF). No like was accepted. Send the request again after the time in Retry-After."
        );
        assert!(
            detail(PublishError::ReadOnly(Published::Unknown))
                .starts_with("Redis is a replica and refuses writes (READONLY). It is unknown whether")
        );
    }

    #[test]
    fn unauthenticated_requests_get_the_matching_challenge() {
        let challenge = |error: AuthError| header(&error.into(), header::WWW_AUTHENTICATE).unwrap();
        let invalid = |error, methods| AuthError::InvalidCredential { error, methods };
        let keys_only = Methods { token: false, api_key: true };
        assert_eq!(challenge(AuthError::NoCredential { methods: keys_only }), "ApiKey");
        assert_eq!(challenge(invalid(InvalidCredential::ApiKey, keys_only)), "ApiKey");
        assert_eq!(challenge(AuthError::NoCredential { methods: BOTH }), "Bearer");
        assert_eq!(challenge(invalid(InvalidCredential::ApiKey, BOTH)), "Bearer");
        assert_eq!(challenge(invalid(InvalidCredential::Expired, BOTH)), "Bearer error=\"invalid_token\"");
    }

    #[test]
    fn temporary_refusals_have_a_retry_after_header() {
        let retry_after = |problem: Problem| header(&problem, header::RETRY_AFTER);
        let quota = QuotaExceeded { quota: QuotaKind::Address, wait: Duration::from_millis(1_001) };
        assert_eq!(retry_after(quota.into()).as_deref(), Some("2"));
        for kind in Kind::ALL {
            let expected = kind.status() == StatusCode::SERVICE_UNAVAILABLE;
            assert_eq!(retry_after((*kind).into()).is_some(), expected, "{kind:?}");
        }
    }
}
