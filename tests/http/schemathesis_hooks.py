"""Rules of likes that JSON Schema cannot express, and a check of batch responses."""

import json
import re

import schemathesis

TIMES = ("created_at", "timestamp")


@schemathesis.hook
def map_body(ctx, body):
    """Replaces 7.0, which is an integer in JSON Schema, and times before 1970 or after 9999."""
    return valid_like(body)


def valid_like(value, name=None):
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [valid_like(item) for item in value]
    if isinstance(value, dict):
        return {name: valid_like(item, name) for name, item in value.items()}
    if isinstance(value, str) and name in TIMES and re.match("[0-9]{4}-", value):
        year = int(value[:4])
        # The UTC offset can change the year. Leap years repeat after 2000 years.
        shift = 2000 if year < 1971 else -2000 if year > 9998 else 0
        return f"{year + shift:04}{value[4:]}"
    return value


@schemathesis.serializer("application/x-ndjson")
def lines(ctx, value):
    """Serializes a batch as NDJSON. A value that is not an array becomes one line."""
    if isinstance(value, (bytes, str)):
        return value if isinstance(value, bytes) else value.encode(errors="surrogatepass")
    items = value if isinstance(value, list) else [value]
    return "".join(json.dumps(item) + "\n" for item in items).encode()


@schemathesis.check
def every_like_of_a_batch_is_accounted_for(ctx, response, case):
    """Checks that each like is either accepted, or reported in exactly one error."""
    sent = case.body
    if case.path != "/likes/batch" or response.status_code != 202 or not isinstance(sent, list):
        return
    batch = response.json()
    indices = [error["index"] for error in batch["errors"]]
    total = batch["accepted"] + batch["rejected"]
    assert total == len(sent), "accepted + rejected is not the size of the batch"
    errors = len(indices) + batch.get("errors_omitted", 0)
    assert errors == batch["rejected"], "number of errors differs from rejected"
    assert indices == sorted(set(indices)), "indices are not in ascending order"
    assert set(indices) <= set(range(len(sent))), "an index is out of range"
