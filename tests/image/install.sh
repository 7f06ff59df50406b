#!/usr/bin/env bash
# Installs what `make test-image` needs: buildah, Prometheus, openssl, busybox and, in the folder
# given, a virtual environment with whatever reads the Dockerfile and compose.yaml.
set -euo pipefail
folder=${1:?a folder}
here=$(dirname "$0")

missing=()
command -v buildah >/dev/null || missing+=(buildah)
command -v promtool >/dev/null || missing+=(prometheus)
command -v openssl >/dev/null || missing+=(openssl)
command -v busybox >/dev/null || missing+=(busybox)
command -v strip >/dev/null || missing+=(binutils)
[ -s /etc/ssl/certs/ca-certificates.crt ] || missing+=(ca-certificates)
[ ${#missing[@]} -eq 0 ] || "$here"/../../tests/stack/packages.sh "${missing[@]}"

"$here"/../../tests/stack/venv.sh "$folder/venv" "$here"/requirements.txt
