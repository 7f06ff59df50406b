"""The code of docs/wire-format.md agrees with the test vectors, and ingest with its producer."""

import json
import os
import re

import msgpack
import redis

from support import ROOT, output

PAGE = (ROOT / "docs" / "wire-format.md").read_text(encoding="utf-8")
VECTORS = json.loads((ROOT / "shared" / "vectors" / "partition.json").read_text(encoding="utf-8"))


def code_blocks(language):
    blocks = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert blocks, f"no {language} in wire-format.md"
    return blocks


def python_names():
    names = {}
    for block in code_blocks("python"):
        exec(block, names)
    return names


def test_partition_function_in_python_agrees_with_the_vectors():
    partition = python_names()["partition"]
    for vector in VECTORS:
        actual = partition(int(vector["user_id"]), vector["partitions"])
        assert actual == vector["partition"], vector


def test_partition_function_in_javascript_agrees_with_the_vectors():
    (code,) = code_blocks("javascript")
    calls = [f"partition({v['user_id']}n, {v['partitions']})" for v in VECTORS]
    printed = output("node", "--eval", f"{code}\nconsole.log(JSON.stringify([{','.join(calls)}]))")
    assert json.loads(printed) == [vector["partition"] for vector in VECTORS]


def test_producer_appends_an_entry_as_ingest_does(streams):
    with redis.Redis.from_url(os.environ["REDIS_URL"]) as client:
        entry_id = python_names()["publish"](client, 7, 42)
    partitions = int(streams.hget("likes:settings", "partitions"))
    key = f"likes:{{{python_names()['partition'](7, partitions)}}}"
    ((stored_id, fields),) = streams.xrange(key)
    version, (user_id, post_id, created_at_us) = msgpack.unpackb(fields[b"l"])
    assert (stored_id, version, user_id, post_id) == (entry_id, 1, 7, 42)
    assert created_at_us > 1_700_000_000_000_000
