#!/usr/bin/env bash
# Makes sure that what `make test-monitoring` runs on is here: Prometheus with promtool and, in a folder of its own, Python packages.
# Argument: the folder.
set -euo pipefail
folder=${1:?a folder}
here=$(dirname "$0")

missing=()
if ! command -v prometheus >/dev/null || ! command -v promtool >/dev/null; then missing+=(prometheus); fi
[ ${#missing[@]} -eq 0 ] || "$here"/../../tests/stack/packages.sh "${missing[@]}"

"$here"/../../tests/stack/venv.sh "$folder/venv" "$here"/requirements.txt
