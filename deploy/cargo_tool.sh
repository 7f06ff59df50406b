#!/usr/bin/env bash
# Installs a version of a cargo tool into FOLDER/tools, unless it is already installed. Arguments: the folder, the tool, its version,
# further arguments of `cargo install`.
set -euo pipefail
folder=${1:?missing argument: folder} tool=${2:?missing argument: tool} version=${3:?missing argument: version}
installed=$folder/tools/.$tool-$version
[ -x "$folder/tools/bin/$tool" ] && [ -e "$installed" ] && exit 0
printf 'building %s %s, this takes some minutes\n' "$tool" "$version" >&2
# The dev profile halves the build time, and the tools run only for seconds.
CARGO_PROFILE_DEV_DEBUG=0 cargo install --locked --quiet --force --profile dev --root "$folder/tools" \
    --target-dir "$folder/tools/build" "${@:4}" "$tool@$version"
rm -rf "$folder/tools/build"
touch "$installed"
