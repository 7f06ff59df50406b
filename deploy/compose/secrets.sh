#!/usr/bin/env bash
# Makes the passwords that compose.yaml wants, of random bytes, and leaves those that are there: the data that compose keeps
# knows them. Argument: a folder other than the one that compose.yaml names.
set -euo pipefail
folder=${1:-$(dirname "$0")/secrets}

# Containers read these files as users of their own, so the files are readable by all, and the folder keeps others out.
umask 022
mkdir -p "$folder"
chmod 700 "$folder"

password() {
    head -c 24 /dev/urandom | od -A n -t x1 | tr -d ' \n'
}

# A name, and what is to be in the file.
make() {
    [ -e "$folder/$1" ] || printf '%s\n' "$2" >"$folder/$1"
}

make postgres-password "$(password)"
make database-url "postgres://likes:$(cat "$folder"/postgres-password)@postgres:5432/likes"
make redis-password "requirepass $(password)"
make redis-url "redis://:$(cut -d ' ' -f 2 "$folder"/redis-password)@redis:6379/0"
make grafana-password "$(password)"
