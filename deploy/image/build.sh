#!/usr/bin/env bash
# Builds the image, labelled with what it is made of, by docker or else buildah. Arguments: its name, and more for the
# build. ENGINE is the engine's command, where it isn't simply one of the two.
set -euo pipefail
name=${1:?a name for the image}
cd "$(dirname "$0")/../.."

read -ra engine <<<"${ENGINE:-$(command -v docker || command -v buildah || true)}"
[ ${#engine[@]} -gt 0 ] || {
    echo 'error: install docker or buildah first' >&2
    exit 1
}
format=()
# Otherwise it leaves the health check out.
[[ ${engine[0]} != *buildah ]] || format=(--format docker)

version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml)
revision=$(git rev-parse HEAD)
[ -z "$(git status --porcelain)" ] || revision+=-modified
"${engine[@]}" build "${format[@]}" --file deploy/Dockerfile --tag "$name" \
    --build-arg VERSION="$version" --build-arg REVISION="$revision" --build-arg CREATED="$(date --utc +%FT%TZ)" \
    "${@:2}" .
