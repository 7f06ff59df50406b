#!/usr/bin/env bash
# Makes sure that what `make test-monitoring` runs on is here: Prometheus with promtool and, in a folder of its own, Python packages.
# Argument: the folder.
set -euo pipefail
folder=${1:?a folder}
here=$(dirname "$0")

missing=()
if ! command -v prometheus >/dev/null || ! command -v promtool >/dev/null; then missing+=(prometheus); fi
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3 python3-venv)
[ ${#missing[@]} -eq 0 ] || "$here"/../../deploy/local/packages.sh "${missing[@]}"

if ! cmp -s "$here"/requirements.txt "$folder/venv/requirements.txt"; then
    rm -rf "$folder/venv"
    mkdir -p "$folder"
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --requirement "$here"/requirements.txt
    cp "$here"/requirements.txt "$folder/venv"
fi
