#!/usr/bin/env python3
"""Generate the test vectors in this folder independently of the Rust code (requires the msgpack package)."""
import json
import pathlib

import msgpack

HERE = pathlib.Path(__file__).parent
MASK = (1 << 64) - 1


def partition(user_id: int, partitions: int) -> int:
    z = (user_id + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    z ^= z >> 31
    return z % partitions


USERS = [1, 2, 3, 7, 42, 1000, 65535, 65536, 2**31 - 1, 2**31, 2**32, 2**53, 2**53 + 1, 10**18, 2**63 - 1]
PARTITION = [
    {"user_id": str(user), "partitions": n, "partition": partition(user, n)}
    for user in USERS
    for n in (1, 7, 16, 1024)
]

LIKES = [
    [[7, 42, 1_700_000_000_000_000]],
    [[1, 1, 0], [2**63 - 1, 2**63 - 1, 253_402_300_799_999_999]],
    [[user, 99, 1_800_000_000_000_000 + user] for user in (1, 127, 128, 255, 256, 65535, 65536, 2**32)],
    [[user, 5, user] for user in range(1, 41)],
]
CODEC = [
    {"payload_hex": msgpack.packb([1, *likes]).hex(), "likes": [[str(field) for field in like] for like in likes]}
    for likes in LIKES
]

for name, vectors in (("partition", PARTITION), ("codec", CODEC)):
    rows = ",\n".join(json.dumps(vector) for vector in vectors)
    (HERE / f"{name}.json").write_text(f"[\n{rows}\n]\n")
