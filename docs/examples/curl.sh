#!/usr/bin/env bash
# Sends likes with curl. Needs LIKES_URL, and LIKES_TOKEN or LIKES_API_KEY where ingest asks for one.
set -euo pipefail
url=${LIKES_URL:-http://127.0.0.1:8080}
answer=$(mktemp)
trap 'rm -f "$answer"' EXIT

# By way of stdin or a pipe a secret is not seen in the list of processes.
credential() {
    if [ -n "${LIKES_TOKEN:-}" ]; then
        printf 'header = "Authorization: Bearer %s"\n' "$LIKES_TOKEN"
    elif [ -n "${LIKES_API_KEY:-}" ]; then
        printf 'header = "X-Api-Key: %s"\n' "$LIKES_API_KEY"
    fi
}

# Arguments: path, media type, body. On 408, 429, 500, 502, 503 and 504 curl waits as long as Retry-After says, or 1, 2, 4 …
# seconds, and sends it again. A like is safe to send again: it is stored once.
post() {
    if ! curl --silent --show-error --fail-with-body --output "$answer" --config <(credential) \
        --retry 5 --retry-connrefused --retry-max-time 120 --max-time 30 \
        --header "Content-Type: $2" --data-binary "$3" "$url$1"; then
        cat "$answer" >&2
        exit 1
    fi
    cat "$answer"
    echo
}

# Many of these should not all come at the same moment, and curl has no jitter of its own.
sleep "0.$((RANDOM % 10))"

post /likes application/json '{"user_id": 7, "post_id": 42}'

batch=$(printf '{"user_id": %d, "post_id": 42}\n' 8 9 10)
post /likes/batch application/x-ndjson "$batch"
