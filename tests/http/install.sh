#!/usr/bin/env bash
# Installs what `make test-http` needs: curl, Node, Go and, in the folder given, a virtual
# environment with schemathesis.
set -euo pipefail
folder=${1:?a folder}
here=$(dirname "$0")

missing=()
command -v curl >/dev/null || missing+=(curl)
command -v node >/dev/null || missing+=(nodejs)
command -v go >/dev/null || missing+=(golang-go)
[ ${#missing[@]} -eq 0 ] || "$here"/../stack/packages.sh "${missing[@]}"

"$here"/../stack/venv.sh "$folder/venv" "$here"/requirements.txt
