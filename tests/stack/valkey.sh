#!/usr/bin/env bash
# Prints the path of valkey-server, for REDIS_SERVER. If it is not installed, unpacks the package from Debian backports
# into a folder without installing it. Argument: the folder.
set -euo pipefail

fail() {
    printf 'error: %s\n' "$1" >&2
    exit 1
}

if command -v valkey-server; then exit 0; fi
folder=${1:?missing argument: folder}
server=$folder/unpacked/usr/bin/valkey-server
if [ ! -x "$server" ]; then
    by_hand='valkey-server not found: install Valkey 8'
    command -v apt-get >/dev/null || fail "$by_hand (apt-get not found)"
    mkdir -p "$folder"/{lists,cache/archives}/partial
    # shellcheck disable=SC2016 # apt-get expands the variables
    read -r codename repository < <(apt-get indextargets \
        --format '$(CREATED_BY) $(COMPONENT) $(CODENAME) $(REPO_URI)' | awk '$1 == "Packages" && $2 == "main" { print $3, $4; exit }')
    printf 'deb %s %s-backports main\n' "$repository" "$codename" >"$folder/backports.list"
    apt=(apt-get -o "Dir::Etc::sourcelist=$folder/backports.list" -o Dir::Etc::sourceparts=- \
        -o "Dir::State::lists=$folder/lists" -o "Dir::Cache=$folder/cache")
    printf 'fetching Valkey\n' >&2
    if ! { "${apt[@]}" update && cd "$folder" && "${apt[@]}" download valkey-server valkey-tools; } >"$folder/log" 2>&1; then
        tail -n 3 "$folder/log" >&2
        fail "$by_hand (not available from the backports of $codename)"
    fi
    for package in "$folder"/*.deb; do dpkg-deb -x "$package" "$folder/unpacked"; done
fi
printf '%s\n' "$server"
