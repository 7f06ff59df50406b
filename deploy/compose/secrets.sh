#!/usr/bin/env bash
# Creates the random passwords that compose.yaml needs. Keeps existing ones, because Postgres and Grafana store them in their volumes.
# Optional argument: a folder other than the one in compose.yaml.
set -euo pipefail
folder=${1:-$(dirname "$0")/secrets}

# Containers read these files under different users, so the files are readable by all. The folder denies access to other users.
umask 022
mkdir -p "$folder"
chmod 700 "$folder"

password() {
    head -c 24 /dev/urandom | od -A n -t x1 | tr -d ' \n'
}

# Arguments: name and content of the file.
make() {
    [ -e "$folder/$1" ] || printf '%s\n' "$2" >"$folder/$1"
}

make postgres-password "$(password)"
make database-url "postgres://likes:$(cat "$folder"/postgres-password)@postgres:5432/likes"
make redis-password "requirepass $(password)"
make redis-url "redis://:$(cut -d ' ' -f 2 "$folder"/redis-password)@redis:6379/0"
make grafana-password "$(password)"
