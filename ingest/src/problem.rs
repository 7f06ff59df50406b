//! Every "no" of the HTTP edge, as `application/problem+json` (RFC 9457).

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;

use crate::{like_request::BadItem, publish::PublishError};

/// How long a caller should wait before the next try, by cause.
const RETRY_SOON_S: u16 = 1;
const RETRY_WHEN_DRAINED_S: u16 = 5;

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
    NotFound,
    MethodNotAllowed,
    BacklogFull,
    Publish(PublishError),
    Internal,
}

/// What the problem says on the wire, all but the request id.
struct Words {
    status: StatusCode,
    code: &'static str,
    title: &'static str,
    detail: String,
    retry_after_s: Option<u16>,
}

impl Problem {
    /// The stable last part of its `type`, also a metric's label.
    pub(crate) fn code(&self) -> &'static str {
        self.words().code
    }

    fn words(&self) -> Words {
        let no =
            |status, code, title, detail: String| Words { status, code, title, detail, retry_after_s: None };
        match self {
            Self::InvalidJson(why) => {
                no(StatusCode::BAD_REQUEST, "invalid-json", "The body is not JSON", why.clone())
            }
            Self::InvalidLike(why) => {
                no(StatusCode::UNPROCESSABLE_ENTITY, "invalid-like", "The body is not a like", why.clone())
            }
            Self::InvalidBatch(bad) => no(
                StatusCode::UNPROCESSABLE_ENTITY,
                "invalid-batch",
                "The batch has no likes",
                match bad.first() {
                    None => "It is empty.".to_owned(),
                    Some(first) => format!("Nothing was taken. Element {}: {}", first.index, first.detail),
                },
            ),
            Self::BatchTooLarge { max_likes } => no(
                StatusCode::PAYLOAD_TOO_LARGE,
                "batch-too-large",
                "The batch has too many likes",
                format!("At most {max_likes} likes are taken at once, and nothing of this was."),
            ),
            Self::BodyTooLarge { max_bytes } => no(
                StatusCode::PAYLOAD_TOO_LARGE,
                "body-too-large",
                "The body is too large",
                format!("At most {max_bytes} bytes are taken."),
            ),
            Self::BodyIncomplete => no(
                StatusCode::BAD_REQUEST,
                "body-incomplete",
                "The body broke off",
                "The connection ended, or left the rules of HTTP, before the body did.".to_owned(),
            ),
            Self::BodyTimeout => no(
                StatusCode::REQUEST_TIMEOUT,
                "body-timeout",
                "The body took too long",
                "Send the whole body at once.".to_owned(),
            ),
            Self::UnsupportedMediaType => no(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported-media-type",
                "The media type is not supported",
                "Send the header Content-Type: application/json, or for a batch application/x-ndjson."
                    .to_owned(),
            ),
            Self::NotFound => no(
                StatusCode::NOT_FOUND,
                "not-found",
                "There is nothing here",
                "Likes are taken by POST /likes and POST /likes/batch.".to_owned(),
            ),
            Self::MethodNotAllowed => no(
                StatusCode::METHOD_NOT_ALLOWED,
                "method-not-allowed",
                "The method is not allowed",
                "Likes are taken by POST /likes and POST /likes/batch.".to_owned(),
            ),
            Self::BacklogFull => unavailable(
                "backlog-full",
                "Too many likes wait to be stored",
                "The like was not taken. Send it again later.",
                RETRY_WHEN_DRAINED_S,
            ),
            Self::Publish(error) => publish_words(*error),
            Self::Internal => no(
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal",
                "Something went wrong here",
                "The like may or may not have been taken. It is safe to send it again.".to_owned(),
            ),
        }
    }

    /// The whole response.
    pub(crate) fn render(&self, request_id: &str) -> Response {
        #[derive(Serialize)]
        struct Body<'a> {
            r#type: String,
            title: &'a str,
            status: u16,
            detail: &'a str,
            request_id: &'a str,
            #[serde(skip_serializing_if = "<[_]>::is_empty")]
            errors: &'a [BadItem],
        }

        let words = self.words();
        let body = Body {
            r#type: format!("urn:likestream:problem:{}", words.code),
            title: words.title,
            status: words.status.as_u16(),
            detail: &words.detail,
            request_id,
            errors: if let Self::InvalidBatch(bad) = self { bad } else { &[] },
        };
        let json = serde_json::to_vec(&body).unwrap_or_default();
        let mut response =
            (words.status, [(header::CONTENT_TYPE, "application/problem+json")], json).into_response();
        if let Some(seconds) = words.retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if matches!(self, Self::MethodNotAllowed) {
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
        }
        response
    }
}

fn publish_words(error: PublishError) -> Words {
    let not_taken = "The like was not taken. Send it again later.";
    // A first attempt may have been carried out although its answer was lost.
    let maybe_taken = "The like may or may not have been taken. It is safe to send it again.";
    match error {
        PublishError::QueueFull => {
            unavailable("overloaded", "Too many likes at once", not_taken, RETRY_SOON_S)
        }
        PublishError::OutOfMemory => {
            unavailable("redis-out-of-memory", "Redis is out of memory", maybe_taken, RETRY_WHEN_DRAINED_S)
        }
        PublishError::Refused => {
            unavailable("redis-refused", "Redis does not take likes", maybe_taken, RETRY_WHEN_DRAINED_S)
        }
        PublishError::Unconfirmed => {
            unavailable("redis-unconfirmed", "The like is not safe enough", maybe_taken, RETRY_SOON_S)
        }
        PublishError::Unavailable => {
            unavailable("redis-unavailable", "Redis can't be reached", maybe_taken, RETRY_SOON_S)
        }
    }
}

fn unavailable(code: &'static str, title: &'static str, detail: &str, retry_after_s: u16) -> Words {
    Words {
        status: StatusCode::SERVICE_UNAVAILABLE,
        code,
        title,
        detail: detail.to_owned(),
        retry_after_s: Some(retry_after_s),
    }
}

/// Hands the problem to the request-id middleware, which renders it.
impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.words().status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}
