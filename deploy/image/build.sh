#!/usr/bin/env bash
# Builds the image with docker or buildah, with labels for version, revision and date. Arguments: the name of the image,
# further arguments of the build. ENGINE overrides the command of the engine.
set -euo pipefail
name=${1:?missing argument: name of the image}
cd "$(dirname "$0")/../.."

read -ra engine <<<"${ENGINE:-$(command -v docker || command -v buildah || true)}"
[ ${#engine[@]} -gt 0 ] || {
    echo 'error: cannot build the image: neither docker nor buildah is installed; install one of them' >&2
    exit 1
}
format=()
# The default format, OCI, has no health check.
[[ ${engine[0]} != *buildah ]] || format=(--format docker)

version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml)
revision=$(git rev-parse HEAD)
[ -z "$(git status --porcelain)" ] || revision+=-modified
"${engine[@]}" build "${format[@]}" --file deploy/Dockerfile --tag "$name" \
    --build-arg VERSION="$version" --build-arg REVISION="$revision" --build-arg CREATED="$(date --utc +%FT%TZ)" \
    "${@:2}" .
