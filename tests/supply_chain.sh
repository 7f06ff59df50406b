#!/usr/bin/env bash
# Checks licences, sources, banned crates and known vulnerabilities of the dependencies, as configured in deny.toml.
# Argument: the folder for the tool and its log.
#
# cargo-audit is not used, because cargo-deny reads the same advisories.
set -euo pipefail
folder=${1:?missing argument: folder}
tool=$folder/tools/bin/cargo-deny
log=$folder/advisories.log
cd "$(dirname "$0")/.."

# Checks the workspace and the fuzz targets, which are not members of it.
deny() {
    local manifest
    for manifest in Cargo.toml tests/fuzz/Cargo.toml; do
        # Warnings are hidden: most of them report crates with two versions.
        "$tool" --locked --log-level error --config deny.toml --manifest-path "$manifest" "$@"
    done
}

deploy/cargo_tool.sh "$folder" cargo-deny 0.20.2 --no-default-features
deny check --hide-inclusion-graph bans licenses sources

# The advisory database is fetched over the network. Without network access, the other checks still apply.
databases=("${CARGO_HOME:-$HOME/.cargo}"/advisory-dbs/*/crates)
if ! GIT_TERMINAL_PROMPT=0 timeout 60 "$tool" fetch db >"$log" 2>&1; then
    if [ ! -d "${databases[0]}" ]; then
        printf 'advisories NOT CHECKED: cannot fetch the advisory database, and there is no local copy; see %s\n' "$log"
        exit 0
    fi
    printf 'cannot update the advisory database; see %s. Checking against the local copy\n' "$log"
fi
deny --offline check --hide-inclusion-graph advisories
