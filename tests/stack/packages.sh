#!/usr/bin/env bash
# Installs Debian packages with apt-get, without starting their services. Arguments: package names.
set -euo pipefail

fail() {
    printf 'error: %s\n' "$1" >&2
    exit 1
}

by_hand="missing packages: install $*"
command -v apt-get >/dev/null || fail "$by_hand (apt-get not found)"
as_root=()
if [ "$(id -u)" -ne 0 ]; then
    sudo -n true 2>/dev/null || fail "$by_hand (sudo needs a password; run: sudo apt-get install $*)"
    as_root=(sudo -n)
fi

# Debian starts a service when its package is installed, unless this file forbids it.
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
    fail "apt-get cannot install $*: see $log"
fi
rm -f "$log"
