//! Bodies of POST /likes: whatever comes, it is a like or refused.

#![no_main]

use ingest::like_request;
use libfuzzer_sys::fuzz_target;

const NOW_US: i64 = 1_800_000_000_000_000;

fuzz_target!(|body: &[u8]| {
    if let Ok(like) = like_request::parse(body, NOW_US) {
        assert!(like.user_id() >= 1 && like.post_id() >= 1);
        let json = format!(r#"{{"user_id":{},"post_id":"{}"}}"#, like.user_id(), like.post_id());
        let again = like_request::parse(json.as_bytes(), like.created_at_us()).expect("our own JSON");
        assert_eq!(again, like);
    }
});
