//! Payloads of entries: arbitrary bytes are decoded or refused, and every like is accounted for.

#![no_main]

use libfuzzer_sys::fuzz_target;
use shared::wire::codec;

fuzz_target!(|payload: &[u8]| {
    let located = codec::locate(payload);
    let Ok(decoded) = codec::decode(payload) else { return };
    assert_eq!(decoded.likes.len(), located.len());
    for (like, found) in decoded.likes.iter().zip(&located) {
        assert_eq!(*like, found.like);
        let alone = codec::decode(&codec::frame(&[&payload[found.bytes.clone()]])).expect("a good like, alone");
        assert_eq!(alone.likes, [*like]);
    }
    for bad in &decoded.bad {
        let alone = codec::decode(&codec::frame(&[&payload[bad.bytes.clone()]])).expect("a bad like, alone");
        assert_eq!((alone.likes.len(), alone.bad.len()), (0, 1));
    }
    if !decoded.likes.is_empty() {
        let again = codec::decode(&codec::encode(&decoded.likes)).expect("our own bytes");
        assert_eq!(again.likes, decoded.likes);
    }
});
