#!/usr/bin/env bash
# Builds all pages as a book. Arguments: the program mdbook, the folder of the book.
set -euo pipefail
mdbook=$(realpath "${1:?missing argument: mdbook}") book=$(realpath --canonicalize-missing "${2:?missing argument: folder}")
cd "$(dirname "$0")/../.."

# mdBook sees one folder only, and the pages link to files all over the repository: so it gets a copy of them all.
source=$(mktemp -d)
trap 'rm -rf "$source"' EXIT
git ls-files -z | xargs -0 cp --parents --target-directory "$source"
mv "$source/docs/book.toml" "$source"
# Links of the summary are relative to docs/, those that mdBook wants to the root.
sed -E 's#\]\(([^.][^)]*)\)#](docs/\1)#; s#\]\(\.\./#](#' "$source/docs/SUMMARY.md" >"$source/SUMMARY.md"
rm "$source/docs/SUMMARY.md"
rm -rf "$book"
"$mdbook" build --dest-dir "$book" "$source"
printf 'the book is in %s\n' "$book/index.html"
