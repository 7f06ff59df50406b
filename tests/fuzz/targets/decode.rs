//! Payloads of entries: arbitrary bytes are decoded or refused, and every like is accounted for.

#![no_main]

use libfuzzer_sys::fuzz_target;
use shared::wire::codec;

fuzz_target!(|payload: &[u8]| {
    let located: Vec<_> = codec::locate(payload).collect();
    let Ok(decoded) = codec::decode(payload) else { return };
    assert_eq!(decoded.likes.len(), located.len());
    for (like, found) in decoded.likes.iter().zip(&located) {
        assert_eq!(*like, found.like);
        let alone = codec::decode(&codec::frame(1, &payload[found.bytes.clone()])).expect("a good like, alone");
        assert_eq!(alone.likes, [*like]);
    }
    assert_eq!(decoded.bad, codec::bad_likes(payload).count());
    for bad in codec::bad_likes(payload) {
        let alone = codec::decode(&codec::frame(1, &payload[bad.bytes])).expect("a bad like, alone");
        assert_eq!((alone.likes.len(), alone.bad), (0, 1));
    }
    if !decoded.likes.is_empty() {
        let again = codec::decode(&codec::encode(&decoded.likes)).expect("our own bytes");
        assert_eq!(again.likes, decoded.likes);
    }
});
