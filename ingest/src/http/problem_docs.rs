//! OpenAPI responses: the problems that each endpoint can return.

use std::collections::BTreeMap;

use utoipa::{
    IntoResponses, PartialSchema,
    openapi::{Content, HeaderBuilder, Ref, RefOr, ResponseBuilder, response::Response},
};

use super::problem::Kind;

/// The problems of both endpoints.
const COMMON: [Kind; 17] = [
    Kind::InvalidJson,
    Kind::BodyIncomplete,
    Kind::NoCredential,
    Kind::InvalidCredential,
    Kind::OtherUser,
    Kind::BodyTimeout,
    Kind::BodyTooLarge,
    Kind::UnsupportedMediaType,
    Kind::RateLimited,
    Kind::Internal,
    Kind::BacklogFull,
    Kind::Overloaded,
    Kind::RedisOutOfMemory,
    Kind::RedisReadOnly,
    Kind::RedisRefused,
    Kind::RedisUnconfirmed,
    Kind::RedisUnavailable,
];

/// The problems of `POST /likes`.
pub(super) struct LikeProblems;

impl IntoResponses for LikeProblems {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        responses(&[Kind::InvalidLike])
    }
}

/// The problems of `POST /likes/batch`.
pub(super) struct BatchProblems;

impl IntoResponses for BatchProblems {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        responses(&[Kind::InvalidBatch, Kind::BatchTooLarge])
    }
}

fn responses(own: &[Kind]) -> BTreeMap<String, RefOr<Response>> {
    let mut by_status: BTreeMap<u16, Vec<Kind>> = BTreeMap::new();
    for kind in COMMON.iter().chain(own) {
        by_status.entry(kind.status().as_u16()).or_default().push(*kind);
    }
    let text = || HeaderBuilder::new().schema(Some(String::schema()));
    let document = |status: u16, kinds: &[Kind]| {
        let lines = kinds.iter().map(|kind| format!("`{}`: {}", kind.code(), kind.title()));
        let mut response = ResponseBuilder::new()
            .description(lines.collect::<Vec<_>>().join("; "))
            .content("application/problem+json", Content::new(Some(Ref::from_schema_name("Problem"))))
            .header("X-Request-Id", text().description(Some("Id of the request")).build());
        if status == 401 {
            response =
                response.header("WWW-Authenticate", text().description(Some("Challenge (RFC 6750)")).build());
        }
        if [429, 503].contains(&status) {
            let seconds = HeaderBuilder::new()
                .schema(Some(u32::schema()))
                .description(Some("Seconds to wait before the next attempt"));
            response = response.header("Retry-After", seconds.build());
        }
        RefOr::T(response.build())
    };
    by_status.iter().map(|(status, kinds)| (status.to_string(), document(*status, kinds))).collect()
}
