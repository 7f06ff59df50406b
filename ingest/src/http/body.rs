//! Reads the body of a request within limits of size and time.

use std::time::Duration;

use axum::{
    body::{Body, HttpBody},
    http::{HeaderMap, header},
};
use http_body_util::{BodyExt, Limited};
use tokio::time::timeout;

use super::problem::{Kind, Problem};

/// Maximum number of bytes read and discarded after a body is refused.
const MAX_DISCARDED_BYTES: usize = 1 << 20;

pub(super) fn is_of_type(headers: &HeaderMap, wanted: &str) -> bool {
    let media_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = media_type.and_then(|value| value.split(';').next());
    essence.is_some_and(|essence| essence.trim().eq_ignore_ascii_case(wanted))
}

/// Reads a body. `reserve` is called with the length read so far, and may refuse more.
pub(super) async fn read(
    headers: &HeaderMap,
    mut body: Body,
    max_bytes: usize,
    limit: Duration,
    mut reserve: impl FnMut(usize) -> Result<(), Problem>,
) -> Result<Vec<u8>, Problem> {
    // A client that waits for 100 Continue does not have to send a body that is too long.
    if headers.contains_key(header::EXPECT) && body.size_hint().lower() > max_bytes as u64 {
        return Err(Problem::body_too_large(max_bytes));
    }
    let read = async {
        // Copied: otherwise one byte of a part could keep the whole read buffer allocated.
        let mut whole = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| Kind::BodyIncomplete)?;
            let Ok(part) = frame.into_data() else { continue };
            let bytes = whole.len() + part.len();
            let fits =
                if bytes <= max_bytes { reserve(bytes) } else { Err(Problem::body_too_large(max_bytes)) };
            if let Err(problem) = fits {
                discard(&mut body).await;
                return Err(problem);
            }
            whole.extend_from_slice(&part);
        }
        Ok(whole)
    };
    timeout(limit, read).await.unwrap_or_else(|_| Err(Kind::BodyTimeout.into()))
}

/// Discards the rest of a body: a client that is still sending when its connection closes may never see the response.
async fn discard(body: &mut Body) {
    let mut rest = Limited::new(body, MAX_DISCARDED_BYTES);
    while let Some(Ok(_)) = rest.frame().await {}
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn media_types_match_without_parameters_and_case() {
        let is_json = |value: &'static str| {
            let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(value))]);
            is_of_type(&headers, "application/json")
        };
        assert!(is_json("application/json") && is_json("Application/JSON ; charset=utf-8"));
        assert!(!is_json("application/jsonl") && !is_json("text/json"));
        assert!(!is_of_type(&HeaderMap::new(), "application/json"));
    }
}
