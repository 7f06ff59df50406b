#!/usr/bin/env bash
# Installs the requirements of `make test-monitoring`: Prometheus with promtool and, in a folder, a virtual environment.
# Argument: the folder.
set -euo pipefail
folder=${1:?missing argument: folder}
here=$(dirname "$0")

missing=()
if ! command -v prometheus >/dev/null || ! command -v promtool >/dev/null; then missing+=(prometheus); fi
[ ${#missing[@]} -eq 0 ] || "$here"/../../tests/stack/packages.sh "${missing[@]}"

"$here"/../../tests/stack/venv.sh "$folder/venv" "$here"/requirements.txt
