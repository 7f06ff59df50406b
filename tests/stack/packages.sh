#!/usr/bin/env bash
# Installs Debian packages where apt can; starts no system service. Arguments: their names.
set -euo pipefail

fail() {
    printf 'error: %s\n' "$1" >&2
    exit 1
}

by_hand="install these first: $*"
command -v apt-get >/dev/null || fail "$by_hand (this machine has no apt-get to do it here)"
as_root=()
if [ "$(id -u)" -ne 0 ]; then
    sudo -n true 2>/dev/null || fail "$by_hand (for example: sudo apt-get install $*)"
    as_root=(sudo -n)
fi

# Debian starts a service as soon as its package is installed, unless this file says no.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap '"${as_root[@]}" rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
    "${as_root[@]}" chmod 755 "$policy"
fi

printf 'installing %s\n' "$*" >&2
log=$(mktemp)
if ! { "${as_root[@]}" apt-get update && "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y --no-install-recommends "$@"; } >"$log" 2>&1; then
    tail -n 5 "$log" >&2
    fail "apt-get can't install $*, its output is in $log"
fi
rm -f "$log"
