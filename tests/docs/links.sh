#!/usr/bin/env bash
# Checks that every relative link and anchor in the Markdown pages of the repository leads somewhere. Argument: the folder of
# node_modules.
set -euo pipefail
modules=$(realpath "${1:?missing argument: folder}")/node_modules
cd "$(dirname "$0")/../.."

mapfile -t pages < <(git ls-files '*.md')
[ ${#pages[@]} -gt 10 ] || { printf 'error: only %d pages found\n' ${#pages[@]} >&2; exit 1; }
"$modules"/.bin/remark --no-config --no-ignore --no-stdout --frail --quiet \
    --use "$modules/remark-gfm/index.js" --use "$modules/remark-validate-links/index.js=repository:false" "${pages[@]}"
printf 'links and anchors of %d pages are valid\n' ${#pages[@]}
