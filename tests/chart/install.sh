#!/usr/bin/env bash
# Installs what `make chart-test` needs: Node with npm, openssl and, in the folder given, a virtual
# environment with helm and the schemas of Kubernetes, and the schemas of custom resources.
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
