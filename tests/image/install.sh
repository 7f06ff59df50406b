#!/usr/bin/env bash
# Installs the requirements of `make test-image`: buildah, Prometheus, openssl, busybox and, in a folder, a virtual
# environment with parsers of the Dockerfile and compose.yaml. Argument: the folder.
set -euo pipefail
folder=${1:?missing argument: folder}
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
