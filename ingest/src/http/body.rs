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

/// Factor by which the buffer of a body grows. The outgrown buffers together take a third of the last one.
const GROWTH: usize = 4;

pub(super) fn is_of_type(headers: &HeaderMap, wanted: &str) -> bool {
    let media_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = media_type.and_then(|value| value.split(';').next());
    essence.is_some_and(|essence| essence.trim().eq_ignore_ascii_case(wanted))
}

/// Reads a body. `reserve` is called with the memory that it is going to take, and may refuse.
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
    let announced = body.size_hint().exact().and_then(|bytes| usize::try_from(bytes).ok());
    let expected = announced.unwrap_or(usize::MAX).min(max_bytes);
    let read = async {
        // Copied: otherwise one byte of a part could keep the whole read buffer allocated.
        let mut whole = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| Kind::BodyIncomplete)?;
            let Ok(part) = frame.into_data() else { continue };
            let bytes = whole.len() + part.len();
            let fits = if bytes > max_bytes {
                Err(Problem::body_too_large(max_bytes))
            } else {
                make_room(&mut whole, bytes, expected, &mut reserve)
            };
            if let Err(problem) = fits {
                drop(whole);
                reserve(0)?;
                discard(&mut body).await;
                return Err(problem);
            }
            whole.extend_from_slice(&part);
        }
        Ok(whole)
    };
    timeout(limit, read).await.unwrap_or_else(|_| Err(Kind::BodyTimeout.into()))
}

/// Makes room for `bytes` of a body, and for more that is expected. The room grows with the received part, because a client
/// can announce a body and not send it.
fn make_room(
    whole: &mut Vec<u8>,
    bytes: usize,
    expected: usize,
    reserve: &mut impl FnMut(usize) -> Result<(), Problem>,
) -> Result<(), Problem> {
    let outgrown = whole.capacity();
    if bytes > outgrown {
        let capacity = outgrown.saturating_mul(GROWTH).min(expected).max(bytes);
        reserve(capacity + outgrown)?;
        whole.reserve_exact(capacity - whole.len());
    }
    Ok(())
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
    fn the_buffer_of_a_body_grows_with_the_received_part() {
        let mut reserved = Vec::new();
        let mut reserve = |bytes| {
            reserved.push(bytes);
            if bytes <= 1_000 { Ok(()) } else { Err(Kind::Overloaded.into()) }
        };
        let mut whole = Vec::new();
        for part in [10, 10, 20, 1, 109] {
            let bytes = whole.len() + part;
            make_room(&mut whole, bytes, 150, &mut reserve).unwrap();
            whole.resize(bytes, b'x');
        }
        assert!(make_room(&mut whole, 2_000, 2_000, &mut reserve).is_err());
        assert_eq!(reserved, [10, 40 + 10, 150 + 40, 2_000 + 150]);
        assert_eq!(whole.capacity(), 150);
    }

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
