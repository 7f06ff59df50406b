#!/usr/bin/env bash
# Makes sure that what `make test-image` runs on is here: buildah, Prometheus, openssl, busybox and, in a folder of its own, what reads
# the Dockerfile and compose.yaml. Argument: the folder.
set -euo pipefail
folder=${1:?a folder}
here=$(dirname "$0")

missing=()
command -v buildah >/dev/null || missing+=(buildah)
command -v promtool >/dev/null || missing+=(prometheus)
command -v openssl >/dev/null || missing+=(openssl)
command -v busybox >/dev/null || missing+=(busybox)
command -v strip >/dev/null || missing+=(binutils)
[ -s /etc/ssl/certs/ca-certificates.crt ] || missing+=(ca-certificates)
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3 python3-venv)
[ ${#missing[@]} -eq 0 ] || "$here"/../../deploy/local/packages.sh "${missing[@]}"

if ! cmp -s "$here"/requirements.txt "$folder/venv/requirements.txt"; then
    rm -rf "$folder/venv"
    mkdir -p "$folder"
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --requirement "$here"/requirements.txt
    cp "$here"/requirements.txt "$folder/venv"
fi
