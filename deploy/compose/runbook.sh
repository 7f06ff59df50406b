#!/bin/sh
# Copies alerts and dashboards with the URL of the runbook, and converts the runbook to an HTML page. Arguments: the folder with the files
# of the chart, the runbook, the output folder, the URL of the page. Runs with busybox, the only shell in the image of Prometheus.
set -eu
files=$1 runbook=$2 made=$3 url=$4

umask 022
rm -rf "$made"/*
mkdir "$made/dashboards" "$made/page"
for file in alerts.yaml $(cd "$files" && echo dashboards/*.json); do
    sed "s|RUNBOOK_URL|$url|g" "$files/$file" >"$made/$file"
done

# The Markdown text, with links to sections.
{
    printf '<!doctype html><html lang="en"><meta charset="utf-8"><title>Runbook</title><pre>\n'
    sed 's/&/\&amp;/g; s/</\&lt;/g; s/>/\&gt;/g; s|\[\([^]]*\)\](\(#[^)]*\))|<a href="\2">\1</a>|g' "$runbook" | awk '
        /^## / {
            id = tolower(substr($0, 4))
            gsub(/[^a-z0-9 -]/, "", id)
            gsub(/ /, "-", id)
            $0 = "<b id=\"" id "\">" $0 "</b>"
        }
        { print }'
    printf '</pre></html>\n'
} >"$made/page/runbook.html"
