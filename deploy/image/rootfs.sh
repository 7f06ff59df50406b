#!/usr/bin/env bash
# Collects everything that the image has beside its base, so that any base will do, `scratch` too: the programs, the
# libraries that they load, and whom to trust. Arguments: the folder with the programs, and one to make.
set -euo pipefail
programs=${1:?the folder with the programs} root=${2:?a folder to make}

fail() {
    printf 'error: %s\n' "$1" >&2
    exit 1
}

[ ! -e "$root" ] || fail "$root is there already"
bundle=/etc/ssl/certs/ca-certificates.crt
[ -s "$bundle" ] || fail "$bundle is not here: install ca-certificates first"

umask 022
mkdir -p "$root"/usr/local/bin
for program in ingest consumer likesctl; do
    [ -x "$programs/$program" ] || fail "$programs/$program is not here: build it first"
    # Line tables would be four fifths of the image. Panics tell file and line without them, and backtraces the
    # functions by the symbols, which stay.
    strip --strip-debug -o "$root/usr/local/bin/$program" "$programs/$program"
    chmod 755 "$root/usr/local/bin/$program"
done

# Each library goes where the loader has just found it, the loader itself too.
loaded=$(ldd "$root"/usr/local/bin/*)
[[ $loaded != *'not found'* ]] || fail "a library is not here:"$'\n'"$(grep 'not found' <<<"$loaded")"
mapfile -t libraries < <(grep -o '/[^ ]* (0x' <<<"$loaded" | cut -d ' ' -f 1 | sort -u)
for library in "${libraries[@]}"; do install -D -m 755 "$library" "$root$library"; done

# Scanners for known vulnerabilities look here for what the libraries are, where there is no package manager. dpkg knows
# files by the names that they had before /lib became a link to /usr/lib, or by those after.
install -D -m 644 /etc/os-release "$root"/usr/lib/os-release
mkdir -p "$root"/var/lib/dpkg/status.d
for library in "${libraries[@]}"; do
    found=$(dpkg-query --search "$library" 2>/dev/null || dpkg-query --search "$(realpath "$library")")
    package=${found%%:*}
    dpkg-query --status "$package" >"$root/var/lib/dpkg/status.d/$package"
done

install -D -m 644 "$bundle" "$root$bundle"
# What `likesctl` takes away it keeps in a file in the folder where it runs.
mkdir -m 1777 "$root"/tmp
