"""What schemathesis has to be told of likes."""

import json
import re

import schemathesis

TIMES = ("created_at", "timestamp")


@schemathesis.hook
def map_body(ctx, body):
    """What JSON Schema can't say: 7.0, for it an integer, is none for us, since ids are exact; and times are from 1970 to 9999."""
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
        # With its offset from UTC a time may be in the next year; after 2000 years leap years are the same.
        shift = 2000 if year < 1971 else -2000 if year > 9998 else 0
        return f"{year + shift:04}{value[4:]}"
    return value


@schemathesis.serializer("application/x-ndjson")
def lines(ctx, value):
    """A batch as lines. What is no array is a line by itself."""
    if isinstance(value, (bytes, str)):
        return value if isinstance(value, bytes) else value.encode(errors="surrogatepass")
    items = value if isinstance(value, list) else [value]
    return "".join(json.dumps(item) + "\n" for item in items).encode()


@schemathesis.check
def every_like_of_a_batch_is_accounted_for(ctx, response, case):
    """Taken or named, each once."""
    sent = case.body
    if case.path != "/likes/batch" or response.status_code != 202 or not isinstance(sent, list):
        return
    answer = response.json()
    named = [error["index"] for error in answer["errors"]]
    assert answer["accepted"] + answer["rejected"] == len(sent), "accepted and rejected are not all"
    assert len(named) == answer["rejected"], "not all that were rejected are named"
    assert named == sorted(set(named)) and set(named) <= set(range(len(sent))), "strange indices"
