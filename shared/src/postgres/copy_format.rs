//! Encodes likes as rows of a binary COPY.

use bytes::{BufMut, Bytes, BytesMut};

use crate::wire::like::Like;

const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";

/// Size of a row: the number of columns, and each column's length and bytes.
const ROW_BYTES: usize = 2 + 3 * (4 + 8);

/// 2000-01-01, the epoch of timestamps in Postgres, in microseconds since the Unix epoch.
const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;

/// Encodes rows of `user_id bigint, post_id bigint, created_at timestamptz` for `COPY … (FORMAT binary)`: a header, then for
/// each row the number of columns and each column's length and bytes, then a trailer.
///
/// Source: Postgres manual, COPY, "Binary Format".
pub fn encode(likes: &[Like]) -> Bytes {
    let mut data = BytesMut::with_capacity(SIGNATURE.len() + 8 + likes.len() * ROW_BYTES + 2);
    data.put_slice(SIGNATURE);
    data.put_i32(0); // flags
    data.put_i32(0); // length of the header's extension
    for like in likes {
        data.put_i16(3);
        for column in [like.user_id(), like.post_id(), like.created_at_us() - POSTGRES_EPOCH_US] {
            data.put_i32(8);
            data.put_i64(column);
        }
    }
    data.put_i16(-1);
    data.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_encoded_in_the_documented_binary_format() {
        let mut expected = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0\0\x03".to_vec();
        for column in [7_i64, 42, 1] {
            expected.extend_from_slice(&[0, 0, 0, 8]);
            expected.extend_from_slice(&column.to_be_bytes());
        }
        expected.extend_from_slice(&[0xff, 0xff]);
        assert_eq!(encode(&[Like::new(7, 42, 946_684_800_000_001).unwrap()]), expected);
    }
}
