//! Reading the body of a request, within bounds.

use std::time::Duration;

use axum::{
    body::{Body, HttpBody},
    http::{HeaderMap, header},
};
use http_body_util::{BodyExt, Limited};
use tokio::time::timeout;

use super::problem::{Kind, Problem};

/// How much of the rest of a refused body is read all the same.
const MAX_DISCARDED_BYTES: usize = 1 << 20;

pub(super) fn is_of_type(headers: &HeaderMap, wanted: &str) -> bool {
    let media_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = media_type.and_then(|value| value.split(';').next());
    essence.is_some_and(|essence| essence.trim().eq_ignore_ascii_case(wanted))
}

/// Reads a body. `reserve` is called with its length so far, and may refuse it.
pub(super) async fn read(
    headers: &HeaderMap,
    mut body: Body,
    max_bytes: usize,
    limit: Duration,
    mut reserve: impl FnMut(usize) -> Result<(), Problem>,
) -> Result<Vec<u8>, Problem> {
    // A caller that waits for 100 Continue need not send a body that is too long.
    if headers.contains_key(header::EXPECT) && body.size_hint().lower() > max_bytes as u64 {
        return Err(Problem::body_too_large(max_bytes));
    }
    let read = async {
        // Copied, because one byte of a part may keep all of the buffer that it was read with.
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

/// Reads on for a while: a caller that is still sending when its connection is closed may never see the answer.
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
