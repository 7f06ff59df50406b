#!/usr/bin/env bash
# Writes a software bill of materials (SBOM) of each program in CycloneDX format: FOLDER/sbom/<program>.json. Argument: the folder.
set -euo pipefail
mkdir -p "${1:?missing argument: folder}"
folder=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."

fail() {
    printf 'error: %s\n' "$1" >&2
    exit 1
}

deploy/cargo_tool.sh "$folder" cargo-cyclonedx 0.5.9
system=$(rustc -vV | sed -n 's/^host: //p')

# cargo-cyclonedx writes its output next to each Cargo.toml, so it runs on a copy of the sources.
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
tar -c --exclude ./target --exclude ./.git . | tar -x -C "$copy"
(
    cd "$copy"
    cargo metadata --locked --format-version 1 >metadata.json
    "$folder/tools/bin/cargo-cyclonedx" cyclonedx --quiet --format json --describe binaries --spec-version 1.5 \
        --target "$system"
)

mkdir -p "$folder/sbom"
for program in ingest/ingest consumer/consumer likesctl/likesctl; do
    package=likestream-${program%/*} sbom=$folder/sbom/${program#*/}.json
    sed "s|file://$copy|file://.|g" "$copy/${program}_bin.cdx.json" >"$sbom"
    # The SBOM must list every package of the program, in the version of Cargo.lock.
    built_of=$(cargo tree --locked --package "$package" --edges normal,build --target "$system" --prefix none --format '{p}' |
        awk '{ print $1 "@" substr($2, 2) }' | sort -u)
    listed=$(grep -o '"purl": "pkg:cargo/[^"?#]*' "$sbom" | sed 's|.*pkg:cargo/||' | sort -u)
    missing=$(comm -23 <(printf '%s\n' "$built_of") <(printf '%s\n' "$listed"))
    [ -n "$built_of" ] && [ -z "$missing" ] || fail "$sbom is incomplete: missing ${missing//$'\n'/, }"
    printf '%s: %s packages\n' "$sbom" "$(wc -l <<<"$listed")"
done
