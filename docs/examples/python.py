#!/usr/bin/env python3
"""Sends likes with the Python standard library.

Set LIKES_URL, and LIKES_TOKEN or LIKES_API_KEY if ingest requires authentication.
"""

import http.client
import json
import os
import random
import sys
import time
import urllib.error
import urllib.request

URL = os.environ.get("LIKES_URL", "http://127.0.0.1:8080")
ATTEMPTS = 6
TIMEOUT_S = 30
LONGEST_WAIT_S = 30


def headers(content_type):
    all_headers = {"Content-Type": content_type}
    if token := os.environ.get("LIKES_TOKEN"):
        all_headers["Authorization"] = f"Bearer {token}"
    elif key := os.environ.get("LIKES_API_KEY"):
        all_headers["X-Api-Key"] = key
    return all_headers


def post(path, content_type, body):
    """Sends a request, with retries on transient failures. Retries are safe: a like is stored once."""
    request = urllib.request.Request(URL + path, data=body, headers=headers(content_type), method="POST")
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            problem = error.read().decode(errors="replace")
            if error.code not in (408, 429, 500, 502, 503, 504) or attempt == ATTEMPTS:
                sys.exit(f"{error.code}: {problem}")
            retry_after = error.headers.get("Retry-After") or ""
            wait_s = float(retry_after) if retry_after.isdigit() else 2.0 ** (attempt - 1)
        except (OSError, http.client.HTTPException) as error:
            if attempt == ATTEMPTS:
                sys.exit(f"no response: {error}")
            wait_s = 2.0 ** (attempt - 1)
        # Jitter: many clients must not retry at the same moment.
        time.sleep(min(wait_s, LONGEST_WAIT_S) * random.uniform(1, 1.5))


def main():
    like = json.dumps({"user_id": 7, "post_id": 42}).encode()
    print(post("/likes", "application/json", like))

    batch = "".join(json.dumps({"user_id": user, "post_id": 42}) + "\n" for user in (8, 9, 10))
    result = post("/likes/batch", "application/x-ndjson", batch.encode())
    print(result)
    for bad in result["errors"]:
        print(f"like {bad['index']} was rejected: {bad['detail']}", file=sys.stderr)


if __name__ == "__main__":
    main()
