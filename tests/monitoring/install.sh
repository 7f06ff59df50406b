#!/usr/bin/env bash
# Installs Prometheus with promtool for `make test-monitoring`, and a virtual environment in the
# given folder.
set -euo pipefail
folder=${1:?a folder}
here=$(dirname "$0")

missing=()
if ! command -v prometheus >/dev/null || ! command -v promtool >/dev/null; then missing+=(prometheus); fi
[ ${#missing[@]} -eq 0 ] || "$here"/../../tests/stack/packages.sh "${missing[@]}"

"$here"/../../tests/stack/venv.sh "$folder/venv" "$here"/requirements.txt
