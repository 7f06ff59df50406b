#!/usr/bin/env bash
# Installs a cargo tool of a version into FOLDER/tools, unless it is there. Arguments: the folder, the tool, its version, more for
# `cargo install`.
set -euo pipefail
folder=${1:?a folder} tool=${2:?a tool} version=${3:?its version}
installed=$folder/tools/.$tool-$version
[ -x "$folder/tools/bin/$tool" ] && [ -e "$installed" ] && exit 0
printf 'building %s %s, which takes some minutes\n' "$tool" "$version" >&2
# Optimised they would take twice as long to build, and run for some seconds only.
CARGO_PROFILE_DEV_DEBUG=0 cargo install --locked --quiet --force --profile dev --root "$folder/tools" \
    --target-dir "$folder/tools/build" "${@:4}" "$tool@$version"
rm -rf "$folder/tools/build"
touch "$installed"
