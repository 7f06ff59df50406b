#!/usr/bin/env bash
# Installs the requirements of `make test-http`: curl, Node, Go and, in a folder, a virtual environment with
# schemathesis. Argument: the folder.
set -euo pipefail
folder=${1:?missing argument: folder}
here=$(dirname "$0")

missing=()
command -v curl >/dev/null || missing+=(curl)
command -v node >/dev/null || missing+=(nodejs)
command -v go >/dev/null || missing+=(golang-go)
[ ${#missing[@]} -eq 0 ] || "$here"/../stack/packages.sh "${missing[@]}"

"$here"/../stack/venv.sh "$folder/venv" "$here"/requirements.txt
