"""What JSON Schema cannot say about likes, and a check for batches."""

import json
import re

import schemathesis

TIMES = ("created_at", "timestamp")


@schemathesis.hook
def map_body(ctx, body):
    """Replaces 7.0, which JSON Schema takes for an integer, and times before 1970 or after 9999."""
    return likeable(body)


def likeable(value, name=None):
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [likeable(item) for item in value]
    if isinstance(value, dict):
        return {name: likeable(item, name) for name, item in value.items()}
    if isinstance(value, str) and name in TIMES and re.match("[0-9]{4}-", value):
        year = int(value[:4])
        # The offset from UTC can lead into another year. Leap years repeat after 2000 years.
        shift = 2000 if year < 1971 else -2000 if year > 9998 else 0
        return f"{year + shift:04}{value[4:]}"
    return value


@schemathesis.serializer("application/x-ndjson")
def lines(ctx, value):
    """Serializes a batch as lines; a value that is not an array is one line."""
    if isinstance(value, (bytes, str)):
        return value if isinstance(value, bytes) else value.encode(errors="surrogatepass")
    items = value if isinstance(value, list) else [value]
    return "".join(json.dumps(item) + "\n" for item in items).encode()


@schemathesis.check
def every_like_of_a_batch_is_accounted_for(ctx, response, case):
    """Each like is either accepted or named in an error, once."""
    sent = case.body
    if case.path != "/likes/batch" or response.status_code != 202 or not isinstance(sent, list):
        return
    answer = response.json()
    named = [error["index"] for error in answer["errors"]]
    assert answer["accepted"] + answer["rejected"] == len(sent), "accepted and rejected are not all"
    assert len(named) == answer["rejected"], "not all that were rejected are named"
    assert named == sorted(set(named)), "indices are not in order"
    assert set(named) <= set(range(len(sent))), "strange indices"
