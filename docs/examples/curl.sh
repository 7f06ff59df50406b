#!/usr/bin/env bash
# Sends likes with curl. Set LIKES_URL, and LIKES_TOKEN or LIKES_API_KEY if ingest requires authentication.
set -euo pipefail
url=${LIKES_URL:-http://127.0.0.1:8080}
response=$(mktemp)
trap 'rm -f "$response"' EXIT

# Passed through a pipe, a secret does not appear in the process list.
credential() {
    if [ -n "${LIKES_TOKEN:-}" ]; then
        printf 'header = "Authorization: Bearer %s"\n' "$LIKES_TOKEN"
    elif [ -n "${LIKES_API_KEY:-}" ]; then
        printf 'header = "X-Api-Key: %s"\n' "$LIKES_API_KEY"
    fi
}

# Arguments: path, media type, body. On 408, 429, 500, 502, 503 and 504 curl waits for the time in Retry-After, or for 1, 2,
# 4 … seconds, and retries. Retries are safe: a like is stored once.
post() {
    if ! curl --silent --show-error --fail-with-body --output "$response" --config <(credential) \
        --retry 5 --retry-connrefused --retry-max-time 120 --max-time 30 \
        --header "Content-Type: $2" --data-binary "$3" "$url$1"; then
        cat "$response" >&2
        exit 1
    fi
    cat "$response"
    echo
}

# Spreads the requests of many clients, because curl has no jitter.
sleep "0.$((RANDOM % 10))"

post /likes application/json '{"user_id": 7, "post_id": 42}'

batch=$(printf '{"user_id": %d, "post_id": 42}\n' 8 9 10)
post /likes/batch application/x-ndjson "$batch"
