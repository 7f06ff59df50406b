#!/usr/bin/env bash
# Makes sure that what `make chart-test` runs on is here: Node with npm, openssl, and in a folder of its own helm, the schemas of Kubernetes, and
# those of custom resources. Argument: the folder.
set -euo pipefail
folder=${1:?a folder}
here=$(dirname "$0")

missing=()
command -v npm >/dev/null || missing+=(nodejs npm)
command -v openssl >/dev/null || missing+=(openssl)
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3 python3-venv)
[ ${#missing[@]} -eq 0 ] || "$here"/../../deploy/local/packages.sh "${missing[@]}"

mkdir -p "$folder"
if ! cmp -s "$here"/requirements.txt "$folder/venv/requirements.txt"; then
    rm -rf "$folder/venv"
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --requirement "$here"/requirements.txt
    cp "$here"/requirements.txt "$folder/venv"
fi

# npm checks what it fetches against the lock's sums.
if ! cmp -s "$here"/package-lock.json "$folder/node_modules/package-lock.json"; then
    rm -rf "$folder/node_modules"
    cp "$here"/package.json "$here"/package-lock.json "$folder"
    npm ci --prefix "$folder" --ignore-scripts --no-audit --no-fund --loglevel error
    cp "$here"/package-lock.json "$folder/node_modules"
fi
