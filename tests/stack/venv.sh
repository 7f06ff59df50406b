#!/usr/bin/env bash
# Creates a Python virtual environment from a requirements file, unless it is up to date. Arguments: the folder, the file.
set -euo pipefail
venv=${1:?missing argument: folder} requirements=${2:?missing argument: requirements file}

python3 -c 'import ensurepip, venv' 2>/dev/null || "$(dirname "$0")"/packages.sh python3 python3-venv
cmp -s "$requirements" "$venv/requirements.txt" && exit
rm -rf "$venv"
mkdir -p "$(dirname "$venv")"
python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --requirement "$requirements"
cp "$requirements" "$venv/requirements.txt"
