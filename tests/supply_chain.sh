#!/usr/bin/env bash
# What comes into the programs from others: licences, sources, banned crates and known vulnerabilities, by deny.toml. Argument:
# the folder for the tool and its log.
#
# cargo-deny reads the same advisories as cargo-audit, which is therefore not used.
set -euo pipefail
folder=${1:?a folder}
tool=$folder/tools/bin/cargo-deny
log=$folder/advisories.log
cd "$(dirname "$0")/.."

# Of the workspace, and of the fuzz targets, which are none of its members.
deny() {
    local manifest
    for manifest in Cargo.toml tests/fuzz/Cargo.toml; do
        # Warnings, of crates that are there in two versions mostly, are for whoever asks for them.
        "$tool" --locked --log-level error --config deny.toml --manifest-path "$manifest" "$@"
    done
}

deploy/cargo_tool.sh "$folder" cargo-deny 0.20.2 --no-default-features
deny check --hide-inclusion-graph bans licenses sources

# The database of advisories is somewhere on the internet: where that is not to be had, the rest counts all the same.
databases=("${CARGO_HOME:-$HOME/.cargo}"/advisory-dbs/*/crates)
if ! GIT_TERMINAL_PROMPT=0 timeout 60 "$tool" fetch db >"$log" 2>&1; then
    if [ ! -d "${databases[0]}" ]; then
        printf 'advisories NOT CHECKED: their database is not here and can'\''t be fetched, see %s\n' "$log"
        exit 0
    fi
    printf 'the newest advisories can'\''t be fetched, see %s: older ones are checked\n' "$log"
fi
deny --offline check --hide-inclusion-graph advisories
