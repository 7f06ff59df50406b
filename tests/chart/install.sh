#!/usr/bin/env bash
# Makes sure that what `make chart-test` runs on is here: Node with npm, openssl, and in a folder of its own helm, the schemas of Kubernetes, and
# those of custom resources. Argument: the folder.
set -euo pipefail
folder=${1:?a folder}
here=$(dirname "$0")

missing=()
command -v npm >/dev/null || missing+=(nodejs npm)
command -v openssl >/dev/null || missing+=(openssl)
[ ${#missing[@]} -eq 0 ] || "$here"/../../tests/stack/packages.sh "${missing[@]}"

mkdir -p "$folder"
"$here"/../../tests/stack/venv.sh "$folder/venv" "$here"/requirements.txt

# npm checks what it fetches against the lock's sums.
if ! cmp -s "$here"/package-lock.json "$folder/node_modules/package-lock.json"; then
    rm -rf "$folder/node_modules"
    cp "$here"/package.json "$here"/package-lock.json "$folder"
    npm ci --prefix "$folder" --ignore-scripts --no-audit --no-fund --loglevel error
    cp "$here"/package-lock.json "$folder/node_modules"
fi
