#!/usr/bin/env bash
# Collects all files that the image adds to its base: the programs, their shared libraries and the CA certificates. So any
# base works, including `scratch`. Arguments: the folder with the programs, the folder to create.
set -euo pipefail
programs=${1:?missing argument: folder with the programs} root=${2:?missing argument: folder to create}

fail() {
    printf 'error: %s\n' "$1" >&2
    exit 1
}

[ ! -e "$root" ] || fail "$root already exists; remove it first"
bundle=/etc/ssl/certs/ca-certificates.crt
[ -s "$bundle" ] || fail "$bundle is missing or empty; install ca-certificates"

umask 022
mkdir -p "$root"/usr/local/bin
for program in ingest consumer likesctl; do
    [ -x "$programs/$program" ] || fail "$programs/$program is missing; build it first"
    # Line tables would be four fifths of the image. Without them, panics still show file and line, and backtraces still
    # show functions, from the symbols.
    strip --strip-debug -o "$root/usr/local/bin/$program" "$programs/$program"
    chmod 755 "$root/usr/local/bin/$program"
done

# Each library, including the loader, is installed at the path where the loader has found it.
loaded=$(ldd "$root"/usr/local/bin/*)
[[ $loaded != *'not found'* ]] || fail "shared libraries are missing:"$'\n'"$(grep 'not found' <<<"$loaded")"
mapfile -t libraries < <(grep -o '/[^ ]* (0x' <<<"$loaded" | cut -d ' ' -f 1 | sort -u)
for library in "${libraries[@]}"; do install -D -m 755 "$library" "$root$library"; done

# Without a package manager, vulnerability scanners read the packages of the libraries from here. dpkg knows a file either
# by its path in /lib or by its path in /usr/lib, because /lib became a link.
install -D -m 644 /etc/os-release "$root"/usr/lib/os-release
mkdir -p "$root"/var/lib/dpkg/status.d
for library in "${libraries[@]}"; do
    found=$(dpkg-query --search "$library" 2>/dev/null || dpkg-query --search "$(realpath "$library")")
    package=${found%%:*}
    dpkg-query --status "$package" >"$root/var/lib/dpkg/status.d/$package"
done

install -D -m 644 "$bundle" "$root$bundle"
# `likesctl` saves removed entries to files in its working directory.
mkdir -m 1777 "$root"/tmp
