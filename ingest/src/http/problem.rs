//! Every "no" of the HTTP edge, as `application/problem+json` (RFC 9457).

use std::time::Duration;

use axum::{
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    edge::auth::{BadCredential, Ways},
    http::request::BadItem,
    publish::group_commit::PublishError,
};

/// How long a caller should wait before the next try, by cause.
const RETRY_SOON: Duration = Duration::from_secs(1);
const RETRY_WHEN_DRAINED: Duration = Duration::from_secs(5);

/// Nothing was taken, and may be later.
const NOT_TAKEN: &str = "Nothing was taken. Send it again later.";
/// A first attempt may have been carried out although its answer was lost.
const MAYBE_TAKEN: &str = "It may or may not have been taken. It is safe to send it again.";

macro_rules! kinds {
    ($($kind:ident $status:ident $code:literal $title:literal)*) => {
        /// What sort of "no" it is: stable for callers, and a metric's label.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Kind { $($kind),* }

        impl Kind {
            /// All there are.
            pub(crate) const ALL: &[Self] = &[$(Self::$kind),*];

            pub(crate) fn status(self) -> StatusCode {
                match self { $(Self::$kind => StatusCode::$status),* }
            }

            /// The last part of its `type`.
            pub(crate) fn code(self) -> &'static str {
                match self { $(Self::$kind => $code),* }
            }

            pub(crate) fn title(self) -> &'static str {
                match self { $(Self::$kind => $title),* }
            }
        }
    };
}

kinds! {
    InvalidJson BAD_REQUEST "invalid-json" "The body is not JSON"
    BodyIncomplete BAD_REQUEST "body-incomplete" "The body broke off"
    NoCredential UNAUTHORIZED "no-credential" "There is no credential"
    InvalidCredential UNAUTHORIZED "invalid-credential" "The credential is not valid"
    OtherUser FORBIDDEN "other-user" "The credential is another user's"
    NotFound NOT_FOUND "not-found" "There is nothing here"
    MethodNotAllowed METHOD_NOT_ALLOWED "method-not-allowed" "The method is not allowed"
    BodyTimeout REQUEST_TIMEOUT "body-timeout" "The body took too long"
    BodyTooLarge PAYLOAD_TOO_LARGE "body-too-large" "The body is too large"
    BatchTooLarge PAYLOAD_TOO_LARGE "batch-too-large" "The batch has too many likes"
    UnsupportedMediaType UNSUPPORTED_MEDIA_TYPE "unsupported-media-type" "The media type is not supported"
    InvalidLike UNPROCESSABLE_ENTITY "invalid-like" "The body is not a like"
    InvalidBatch UNPROCESSABLE_ENTITY "invalid-batch" "The batch has no likes"
    RateLimited TOO_MANY_REQUESTS "rate-limited" "Too much in too short a time"
    Internal INTERNAL_SERVER_ERROR "internal" "Something went wrong here"
    BacklogFull SERVICE_UNAVAILABLE "backlog-full" "Too many likes wait to be stored"
    Overloaded SERVICE_UNAVAILABLE "overloaded" "Too much at once"
    RedisOutOfMemory SERVICE_UNAVAILABLE "redis-out-of-memory" "Redis is out of memory"
    RedisRefused SERVICE_UNAVAILABLE "redis-refused" "Redis does not take likes"
    RedisUnconfirmed SERVICE_UNAVAILABLE "redis-unconfirmed" "The like is not safe enough"
    RedisUnavailable SERVICE_UNAVAILABLE "redis-unavailable" "Redis can't be reached"
}

/// Why a request was not done, for its caller to act on.
#[derive(Clone, Debug)]
pub(crate) enum Problem {
    /// The body is not JSON.
    InvalidJson(String),
    /// The body is JSON, but no like.
    InvalidLike(String),
    /// None of a batch is a like.
    InvalidBatch(Vec<BadItem>),
    /// A batch has too many likes.
    BatchTooLarge {
        max_likes: usize,
    },
    BodyTooLarge {
        max_bytes: usize,
    },
    /// The body broke off.
    BodyIncomplete,
    /// The body took too long to arrive.
    BodyTimeout,
    UnsupportedMediaType,
    NoCredential {
        ways: Ways,
    },
    InvalidCredential {
        bad: BadCredential,
        ways: Ways,
    },
    /// The token is a user's, and the like, or this one of a batch, is another's.
    OtherUser {
        index: Option<usize>,
    },
    /// A quota is used up for so long.
    RateLimited {
        whose: Quota,
        wait: Duration,
    },
    NotFound,
    MethodNotAllowed,
    BacklogFull,
    /// More requests than are served at once.
    Overloaded,
    Publish(PublishError),
    Internal,
}

/// Whose quota is used up.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Quota {
    User,
    Address,
}

/// The body of every "no": RFC 9457 problem details.
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub(crate) struct ProblemBody<'a> {
    /// `urn:likestream:problem:` and the code: stable
    #[schema(example = "urn:likestream:problem:invalid-like", pattern = "^urn:likestream:problem:[a-z-]+$")]
    r#type: String,
    /// The code in words
    title: &'a str,
    /// The HTTP status
    #[schema(minimum = 400, maximum = 599)]
    status: u16,
    /// What is wrong, and what to do about it
    detail: &'a str,
    /// That of the header x-request-id, and of the server's log
    request_id: &'a str,
    /// What is wrong with each like of a batch
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    #[schema(required = false)]
    errors: &'a [BadItem],
}

impl Problem {
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::InvalidJson(_) => Kind::InvalidJson,
            Self::InvalidLike(_) => Kind::InvalidLike,
            Self::InvalidBatch(_) => Kind::InvalidBatch,
            Self::BatchTooLarge { .. } => Kind::BatchTooLarge,
            Self::BodyTooLarge { .. } => Kind::BodyTooLarge,
            Self::BodyIncomplete => Kind::BodyIncomplete,
            Self::BodyTimeout => Kind::BodyTimeout,
            Self::UnsupportedMediaType => Kind::UnsupportedMediaType,
            Self::NoCredential { .. } => Kind::NoCredential,
            Self::InvalidCredential { .. } => Kind::InvalidCredential,
            Self::OtherUser { .. } => Kind::OtherUser,
            Self::RateLimited { .. } => Kind::RateLimited,
            Self::NotFound => Kind::NotFound,
            Self::MethodNotAllowed => Kind::MethodNotAllowed,
            Self::BacklogFull => Kind::BacklogFull,
            Self::Overloaded | Self::Publish(PublishError::QueueFull) => Kind::Overloaded,
            Self::Publish(PublishError::OutOfMemory) => Kind::RedisOutOfMemory,
            Self::Publish(PublishError::Refused) => Kind::RedisRefused,
            Self::Publish(PublishError::Unconfirmed) => Kind::RedisUnconfirmed,
            Self::Publish(PublishError::Unavailable) => Kind::RedisUnavailable,
            Self::Internal => Kind::Internal,
        }
    }

    fn detail(&self) -> String {
        let fixed = match self {
            Self::InvalidJson(why) | Self::InvalidLike(why) => why,
            Self::InvalidBatch(bad) => {
                return match bad.first() {
                    None => "It is empty.".to_owned(),
                    Some(first) => format!("Nothing was taken. Element {}: {}", first.index, first.detail),
                };
            }
            Self::BatchTooLarge { max_likes } => {
                return format!("At most {max_likes} likes are taken at once, and nothing of this was.");
            }
            Self::BodyTooLarge { max_bytes } => return format!("At most {max_bytes} bytes are taken."),
            Self::BodyIncomplete => "The connection ended, or left the rules of HTTP, before the body did.",
            Self::BodyTimeout => "Send the whole body at once.",
            Self::UnsupportedMediaType => {
                "Send the header Content-Type: application/json, or for a batch application/x-ndjson."
            }
            Self::NoCredential { ways: Ways { token: true, api_key: true } } => {
                "Send the header Authorization: Bearer <token>, or X-Api-Key: <key>."
            }
            Self::NoCredential { ways: Ways { api_key: true, .. } } => "Send the header X-Api-Key: <key>.",
            Self::NoCredential { .. } => "Send the header Authorization: Bearer <token>.",
            Self::InvalidCredential { bad, .. } => return bad.to_string(),
            Self::OtherUser { index: None } => "The token's sub is not the user_id of the like.",
            Self::OtherUser { index: Some(index) } => {
                return format!("Nothing was taken. Element {index}: the token's sub is not its user_id.");
            }
            Self::RateLimited { whose: Quota::User, .. } => {
                "This user has used up the quota of likes. Nothing was taken. Send it again after Retry-After."
            }
            Self::RateLimited { whose: Quota::Address, .. } => {
                "This address has used up the quota of requests. Nothing was taken. Send it again after Retry-After."
            }
            Self::NotFound | Self::MethodNotAllowed => {
                "Likes are taken by POST /likes and POST /likes/batch: see /docs."
            }
            Self::BacklogFull | Self::Overloaded | Self::Publish(PublishError::QueueFull) => NOT_TAKEN,
            Self::Publish(_) | Self::Internal => MAYBE_TAKEN,
        };
        fixed.to_owned()
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { wait, .. } => Some(*wait),
            Self::BacklogFull | Self::Publish(PublishError::OutOfMemory | PublishError::Refused) => {
                Some(RETRY_WHEN_DRAINED)
            }
            Self::Overloaded | Self::Publish(_) => Some(RETRY_SOON),
            _ => None,
        }
    }

    /// The whole response. `headers` are those that the router has found already, such as Allow.
    pub(crate) fn render(&self, request_id: &str, headers: HeaderMap) -> Response {
        let kind = self.kind();
        let body = ProblemBody {
            r#type: format!("urn:likestream:problem:{}", kind.code()),
            title: kind.title(),
            status: kind.status().as_u16(),
            detail: &self.detail(),
            request_id,
            errors: if let Self::InvalidBatch(bad) = self { bad } else { &[] },
        };
        let json = serde_json::to_vec(&body).unwrap_or_default();
        let mut response = (kind.status(), headers, json).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.remove(header::CONTENT_LENGTH);
        if let Some(wait) = self.retry_after() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(whole_seconds(wait)));
        }
        // RFC 6750, section 3: what is the matter is said only of a token that came. A 401 must have a challenge; there
        // is no registered one for keys.
        let challenge = match self {
            Self::NoCredential { ways } | Self::InvalidCredential { ways, .. } if !ways.token => {
                Some("ApiKey")
            }
            Self::NoCredential { .. } | Self::InvalidCredential { bad: BadCredential::ApiKey, .. } => {
                Some("Bearer")
            }
            Self::InvalidCredential { .. } => Some("Bearer error=\"invalid_token\""),
            _ => None,
        };
        if let Some(challenge) = challenge {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        response
    }
}

/// Rounded up: who comes earlier comes in vain.
pub(crate) fn whole_seconds(wait: Duration) -> u64 {
    (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)
}

/// Hands the problem to the request-id middleware, which renders it.
impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.kind().status().into_response();
        response.extensions_mut().insert(self);
        response
    }
}
