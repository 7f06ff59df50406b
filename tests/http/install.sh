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
[ ${#missing[@]} -eq 0 ] || "$here"/../../tests/stack/packages.sh "${missing[@]}"

"$here"/../../tests/stack/venv.sh "$folder/venv" "$here"/requirements.txt
