#!/usr/bin/env bash
# Makes sure that what `make test-http` runs on is here: curl, Node, Go and, in a folder of its own, schemathesis. Argument: the
# folder.
set -euo pipefail
folder=${1:?a folder}
here=$(dirname "$0")

missing=()
command -v curl >/dev/null || missing+=(curl)
command -v node >/dev/null || missing+=(nodejs)
command -v go >/dev/null || missing+=(golang-go)
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3 python3-venv)
[ ${#missing[@]} -eq 0 ] || "$here"/../../deploy/local/packages.sh "${missing[@]}"

if ! cmp -s "$here"/requirements.txt "$folder/venv/requirements.txt"; then
    rm -rf "$folder/venv"
    mkdir -p "$folder"
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --requirement "$here"/requirements.txt
    cp "$here"/requirements.txt "$folder/venv"
fi
