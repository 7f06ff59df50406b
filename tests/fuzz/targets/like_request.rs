//! Bodies of POST /likes and /likes/batch: arbitrary bytes are parsed into likes or refused.

#![no_main]

use ingest::http::request;
use libfuzzer_sys::fuzz_target;

const NOW_US: i64 = 1_800_000_000_000_000;
const MAX_LIKES: usize = 100;

fuzz_target!(|body: &[u8]| {
    if let Ok(like) = request::parse(body, NOW_US) {
        assert!(like.user_id() >= 1 && like.post_id() >= 1);
        let json = format!(r#"{{"user_id":{},"post_id":"{}"}}"#, like.user_id(), like.post_id());
        let again = request::parse(json.as_bytes(), like.created_at_us()).expect("our own JSON");
        assert_eq!(again, like);
    }
    for parse in [request::parse_array, request::parse_lines] {
        if let Ok(batch) = parse(body, NOW_US, MAX_LIKES) {
            assert!(batch.likes.len() + batch.errors.rejected() <= MAX_LIKES);
            assert!(batch.errors.listed().is_sorted_by_key(|bad| bad.index));
        }
    }
});
