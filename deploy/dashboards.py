"""Writes the Grafana dashboards, chart/files/dashboards/*.json. Argument: another folder for them.

Panels flow into rows of 24 columns. The chart replaces RUNBOOK_URL, as in chart/files/alerts.yaml.
"""

import json
import pathlib
import sys
from string import ascii_uppercase

FOLDER = pathlib.Path(__file__).resolve().parent / "chart" / "files" / "dashboards"
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
COLUMNS = 24

INGEST = 'namespace=~"$namespace", job=~"$ingest"'
CONSUMER = 'namespace=~"$namespace", job=~"$consumer"'
BOTH = 'namespace=~"$namespace", job=~"$ingest|$consumer"'
POST = INGEST + ', http_request_method="POST"'


def rate(metric, by=""):
    """Of a counter, or of several processes' counters, a second."""
    return f"sum{by and f' by ({by}) '}(rate({metric}[$__rate_interval]))"


def quantiles(metric, *wanted, by=""):
    """Targets of a histogram, one for each quantile. `by` has the labels that are kept."""
    labels = f"{by}, le" if by else "le"
    legend = "".join(f"{{{{{label.strip()}}}}} " for label in by.split(",") if label)
    return [
        (
            f"histogram_quantile({quantile}, sum by ({labels}) (rate({metric}[$__rate_interval])))",
            f"{legend}p{quantile * 100:g}",
        )
        for quantile in wanted
    ]


def panel(kind, size, title, description, unit, targets, *, runbook=None, steps=(), **more):
    """
    `targets` are pairs of a query and its legend, `steps` pairs of a value and the colour from
    there on.
    """
    colours = [{"color": "green", "value": None}]
    colours += [{"color": colour, "value": value} for value, colour in steps]
    defaults = {"unit": unit, "min": 0, "thresholds": {"mode": "absolute", "steps": colours}}
    made = {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": DATASOURCE,
        "gridPos": {"w": size[0], "h": size[1]},
        "fieldConfig": {
            "defaults": {**defaults, **more.pop("defaults", {})},
            "overrides": more.pop("overrides", []),
        },
        "options": more.pop("options"),
        "targets": [
            {"refId": name, "datasource": DATASOURCE, "expr": query, "legendFormat": legend}
            for name, (query, legend) in zip(ascii_uppercase, targets, strict=False)
        ],
    }
    if runbook:
        anchor = runbook.lower().replace(" ", "-")
        made["links"] = [
            {"title": f"Runbook: {runbook}", "url": f"RUNBOOK_URL#{anchor}", "targetBlank": True}
        ]
    return made


def stat(title, description, unit, query, **more):
    """One figure of now, with the colour of its threshold."""
    more["options"] = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "value",
        "graphMode": "area",
        "textMode": "value",
    }
    more.setdefault("defaults", {})["color"] = {"mode": "thresholds"}
    return panel("stat", (3, 4), title, description, unit, [(query, title)], **more)


def graph(title, description, unit, targets, *, width=8, stacked=False, **more):
    """Lines over time, or areas that add up. Thresholds are dashed lines."""
    more["options"] = {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    custom = {
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": 30 if stacked else 5,
        "showPoints": "never",
    }
    if stacked:
        custom["stacking"] = {"mode": "normal", "group": "A"}
    if more.get("steps"):
        custom["thresholdsStyle"] = {"mode": "dashed"}
    more.setdefault("defaults", {}).update({"color": {"mode": "palette-classic"}, "custom": custom})
    return panel("timeseries", (width, 8), title, description, unit, targets, **more)


def variable(name, label, query):
    return {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "includeAll": True,
        "allValue": ".*",
        "multi": False,
        "current": {"text": "All", "value": "$__all"},
    }


def jobs_with(metric):
    return f'label_values({metric}{{namespace=~"$namespace"}}, job)'


def placed(rows):
    """Panels with numbers and places, row by row: each has a title and what is in it."""
    panels, y = [], 0
    for title, content in rows:
        place = {"x": 0, "y": y, "w": COLUMNS, "h": 1}
        panels.append({"type": "row", "title": title, "collapsed": False, "gridPos": place})
        x, y = 0, y + 1
        for made in content:
            place = made["gridPos"]
            if x + place["w"] > COLUMNS:
                x, y = 0, y + place["h"]
            made["gridPos"] = {"x": x, "y": y, **place}
            x += place["w"]
            panels.append(made)
        y += content[-1]["gridPos"]["h"]
    return [{"id": number, **made} for number, made in enumerate(panels, 1)]


# What follows are tables: one argument a line would be harder to read.
# fmt: off


def dashboard(uid, title, description, rows):
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["likestream"],
        "schemaVersion": 39,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "timezone": "browser",
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "links": [
            {"type": "dashboards", "title": "likestream", "tags": ["likestream"], "keepTime": True,
             "includeVars": True},
            {"type": "link", "title": "Runbook", "url": "RUNBOOK_URL", "icon": "doc",
             "targetBlank": True},
        ],
        "templating": {"list": [
            {"type": "datasource", "name": "datasource", "label": "Prometheus",
             "query": "prometheus"},
            variable("namespace", "Namespace", "label_values(likestream_check_passing, namespace)"),
            variable("ingest", "Ingest", jobs_with("likestream_backlog_limit_entries")),
            variable("consumer", "Consumer", jobs_with("likestream_partitions_owned")),
        ]},
        "annotations": {"list": [
            {"name": "Alerts", "enable": True, "iconColor": "red", "datasource": DATASOURCE,
             "titleFormat": "{{alertname}}",
             "expr": 'ALERTS{alertname=~"Likestream.*", alertstate="firing", '
                     'namespace=~"$namespace"}'},
        ]},
        "panels": placed(rows),
    }


def overview():
    group = "messaging_consumer_group_name"
    group_backlog = f'max(likestream_backlog_entries{{{CONSUMER}, {group}!=""}})'
    ingest_backlog = f'max(likestream_backlog_entries{{{INGEST}, {group}=""}})'
    limit = f"min(likestream_backlog_limit_entries{{{INGEST}}})"
    now = [
        stat("Accepted", "Likes that Redis has taken, a second.", "short",
             rate(f"likestream_likes_accepted_total{{{INGEST}}}")),
        stat("Stored", "Rows that are new in the table, a second.", "short",
             rate(f"likestream_rows_inserted_total{{{CONSUMER}}}")),
        stat("Refused",
             "Requests with likes that were answered 5xx, of all in 5 minutes. 0.1 % may be.",
             "percentunit",
             f"max(likestream:requests_failed:ratio_rate5m{{{INGEST}}})", runbook="Likes refused",
             steps=[(0.001, "orange"), (0.0144, "red")], defaults={"max": 1}),
        stat("Backlog", "Entries that are not stored yet, undelivered and pending.", "short",
             group_backlog, runbook="Backlog grows"),
        stat("Of the limit",
             "How much of INGEST_BACKLOG_LIMIT is used. Likes are refused at 100 %.", "percentunit",
             f"{ingest_backlog} / {limit}", runbook="Backlog limit",
             steps=[(0.5, "orange"), (0.9, "red")], defaults={"max": 1}),
        stat("Oldest like", "How long ago the oldest like was accepted that is not stored yet.",
             "s",
             f"max(likestream:oldest_age_seconds:max{{{CONSUMER}}})", runbook="Oldest age",
             steps=[(60, "orange"), (900, "red")]),
        stat("Dead letters", "Likes in Redis that could not be stored and wait for somebody.",
             "short",
             "sum(max by (namespace, job, partition)"
             f" (likestream_partition_dead_letters{{{CONSUMER}}}))", runbook="Dead letters",
             steps=[(1, "orange")]),
        stat("Not ready", "Checks that fail, of all processes. The processes are in the last row.",
             "short",
             f"count(likestream_check_passing{{{BOTH}}} == 0)"
             f" or 0 * count(likestream_check_passing{{{BOTH}}})",
             runbook="Not ready", steps=[(1, "red")]),
    ]
    likes = [
        graph("Likes", "Accepted by ingest, and what became of them: new rows, or known already.",
              "short", [
            (rate(f"likestream_likes_accepted_total{{{INGEST}}}"), "accepted"),
            (rate(f"likestream_rows_inserted_total{{{CONSUMER}}}"), "inserted"),
            (rate(f"likestream_likes_deduplicated_total{{{CONSUMER}}}"), "deduplicated"),
        ]),
        graph("Backlog",
              "Entries that wait: of the consumers' group, and at ingest of the slowest of all "
              "groups. At the limit likes are refused.",
              "short",
              [(group_backlog, "consumers' group"), (ingest_backlog, "slowest group"),
               (limit, "limit")], runbook="Backlog limit",
              overrides=[{
                  "matcher": {"id": "byName", "options": "limit"},
                  "properties": [
                      {"id": "color", "value": {"mode": "fixed", "fixedColor": "red"}},
                      {"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [10, 10]}},
                      {"id": "custom.fillOpacity", "value": 0},
                  ],
              }]),
        graph("Age of the oldest",
              "How long ago the oldest like that is not stored was accepted, and the oldest that "
              "was delivered to a consumer.", "s", [
            (f"max(likestream:oldest_age_seconds:max{{{CONSUMER}}})", "oldest"),
            (f"max(likestream:partition_oldest_pending_age_seconds:max{{{CONSUMER}}})",
             "oldest pending"),
        ], runbook="Oldest age", steps=[(900, "red")]),
        graph("Backlog by partition",
              "One that stands out has no consumer, or an entry that is stuck.", "short", [
            (f"max by (partition) (likestream_partition_backlog_entries{{{CONSUMER}}})",
             "{{partition}}"),
        ], stacked=True, runbook="Backlog grows"),
        graph("Pending by partition", "Delivered and not acknowledged.", "short", [
            (f"max by (partition) (likestream_partition_pending_entries{{{CONSUMER}}})",
             "{{partition}}"),
        ], stacked=True, runbook="Stuck pending"),
        graph("Refused requests",
              "By problem code: those of 5xx are ours, the others the callers' doing.", "reqps", [
            (rate(f"likestream_requests_refused_total{{{INGEST}}}", "code"), "{{code}}"),
        ], stacked=True, runbook="Likes refused"),
    ]
    latency = [
        graph("Answer", "How long callers wait for the answer to a request with likes.", "s",
              quantiles(f"http_server_request_duration_seconds_bucket{{{POST}}}", 0.5, 0.95, 0.99),
              runbook="Slow answers",
              steps=[(0.5, "red")]),
        graph("From Redis to commit",
              "Of each batch and partition the oldest entry, by the clocks of Redis and the "
              "consumer.", "s",
              quantiles(f"likestream_end_to_end_latency_seconds_bucket{{{CONSUMER}}}", 0.5,
                        0.95, 0.99),
              runbook="Stored late", steps=[(10, "red")]),
        graph("Transactions in Postgres", "How long a transaction takes, committed or not.", "s",
              quantiles(f"db_client_operation_duration_seconds_bucket{{{CONSUMER}}}", 0.5, 0.95,
                        0.99), runbook="Postgres refuses"),
        graph("Redis, p99 by command", "How long Redis takes, as ingest and consumers see it.", "s",
              quantiles(f"messaging_client_operation_duration_seconds_bucket{{{BOTH}}}", 0.99,
                        by="messaging_operation_name"), runbook="Slow answers"),
        graph("Redis, commands", "Calls a second.", "ops", [
            (rate(f"messaging_client_operation_duration_seconds_count{{{BOTH}}}",
                  "messaging_operation_name"), "{{messaging_operation_name}}"),
        ]),
        graph("Connections to Postgres", "In use and idle, of all consumers.", "short", [
            (f"sum by (db_client_connection_state) (db_client_connection_count{{{CONSUMER}}})",
             "{{db_client_connection_state}}"),
        ], stacked=True),
    ]
    batches = [
        graph("Batches by what closed them",
              "full: there is a backlog. linger: there is none. shutdown: a consumer ends.", "ops",
              [
            (rate(f"likestream_batches_committed_total{{{CONSUMER}}}", "flush"), "{{flush}}"),
        ], stacked=True),
        graph("Rows of a batch", "The more, the cheaper is each. BATCH_ROWS is the most.", "short",
              quantiles(f"likestream_batch_rows_bucket{{{CONSUMER}}}", 0.5, 0.95)),
        graph("Failed transactions",
              "retry passes by itself, halt needs an operator. Fell back: predicted to be new "
              "rows, which they were not.", "ops", [
            (rate(f"likestream_batches_failed_total{{{CONSUMER}}}", "class"), "{{class}}"),
            (rate(f"likestream_direct_copy_fallbacks_total{{{CONSUMER}}}"), "fell back"),
        ], runbook="Postgres refuses"),
    ]
    entries = [
        graph("Entries", "Delivered, acknowledged and trimmed: the same, but for a short while.",
              "short", [
            (rate(f"messaging_client_consumed_messages_total{{{CONSUMER}}}"), "delivered"),
            (rate(f"likestream_entries_acknowledged_total{{{CONSUMER}}}"), "acknowledged"),
            (rate(f"likestream_entries_trimmed_total{{{CONSUMER}}}"), "trimmed"),
        ]),
        graph("Delivered again",
              "Entries that a consumer had before, or another one. Much of it means that consumers "
              "die.", "short", [
            (rate(f"likestream_entries_reclaimed_total{{{CONSUMER}}}"), "reclaimed"),
        ], runbook="Stuck pending"),
        graph("Dead letters", "Written a second, by reason.", "short", [
            (rate(f"likestream_dead_letters_total{{{CONSUMER}}}", "reason"), "{{reason}}"),
        ], stacked=True, runbook="Dead letters"),
        graph("Lost",
              "Entries that went from a stream before they were stored, in an hour. Any is one too "
              "many.", "short", [
            (f"sum(increase(likestream_entries_lost_total{{{CONSUMER}}}[1h]))", "lost"),
        ], runbook="Lost entries", steps=[(1, "red")]),
        graph("Trimming fails", "Times a second. What is stored stays in the memory of Redis.",
              "ops", [
            (rate(f"likestream_trim_failures_total{{{CONSUMER}}}"), "failures"),
        ], runbook="Trimming fails"),
        graph("Sent again to Redis",
              "Entries of which nobody knew if Redis had them. They are stored once all the same.",
              "short", [
            (rate(f"likestream_append_retries_total{{{INGEST}}}"), "repeats"),
        ], runbook="Appends repeated"),
    ]
    processes = [
        graph("Partitions by consumer",
              "Consumers share them evenly; a step is a change of members.", "short", [
            (f"sum by (instance) (likestream_partitions_owned{{{CONSUMER}}})", "{{instance}}"),
        ], stacked=True, runbook="Consumer flapping"),
        graph("Partitions that nobody reads",
              "Orphaned: there is no consumer for them. Paused: somebody wanted it so.", "short", [
            (f"max(likestream_partitions_orphaned{{{CONSUMER}}})", "orphaned"),
            (f"sum(likestream_partitions_paused{{{CONSUMER}}})", "paused"),
        ], runbook="Partitions without a consumer"),
        graph("Checks that pass", "Of each process, by name: all should be at 1.", "short", [
            (f"min by (instance, check) (likestream_check_passing{{{BOTH}}})",
             "{{instance}} {{check}}"),
        ], runbook="Not ready", defaults={"max": 1}),
    ]
    return dashboard("likestream-overview", "likestream",
                     "For whoever is on call: how likes come in, wait, and are stored.", [
        ("Now", now), ("Likes", likes), ("Latency", latency), ("Batches", batches),
        ("Entries", entries), ("Processes", processes),
    ])


def edge():
    requests = f"http_server_request_duration_seconds_count{{{INGEST}}}"
    http = [
        graph("Requests", "By route and status.", "reqps", [
            (rate(requests, "http_route, http_response_status_code"),
             "{{http_route}} {{http_response_status_code}}"),
        ], width=12, stacked=True, runbook="Likes refused"),
        graph("Requests that failed",
              "Of those with likes, answered 5xx: in 5 minutes, and in an hour. Both over the line "
              "is a page.", "percentunit", [
            (f"max(likestream:requests_failed:ratio_rate5m{{{INGEST}}})", "5m"),
            (f"max(likestream:requests_failed:ratio_rate1h{{{INGEST}}})", "1h"),
        ], width=12, runbook="Likes refused", steps=[(0.0144, "red")]),
        graph("Answers, p99 by route", "From the head of the request to the head of the answer.",
              "s",
              quantiles(f"http_server_request_duration_seconds_bucket{{{INGEST}}}", 0.99,
                        by="http_route"), width=12,
              runbook="Slow answers", steps=[(0.5, "red")]),
        graph("Answers to POST /likes", "One like.", "s",
              quantiles(f'http_server_request_duration_seconds_bucket{{{POST}, '
                        'http_route="/likes"}', 0.5, 0.9, 0.99, 0.999), width=12,
              runbook="Slow answers", steps=[(0.5, "red")]),
        graph("In flight",
              "Requests that are being answered, of all ingests. INGEST_MAX_REQUESTS is the most "
              "that each one takes.", "short", [
            (f"sum by (instance) (http_server_active_requests{{{INGEST}}})", "{{instance}}"),
        ], width=12, stacked=True),
        graph("Connections",
              "Of callers. INGEST_MAX_CONNECTIONS is the most that each ingest takes.", "short", [
            (f"sum by (instance) (likestream_connections_open{{{INGEST}}})", "{{instance}}"),
        ], width=12, stacked=True),
        graph("Refused, by code", "What the codes mean is in the README.", "reqps", [
            (rate(f"likestream_requests_refused_total{{{INGEST}}}", "code"), "{{code}}"),
        ], width=24, stacked=True, runbook="Likes refused"),
    ]
    redis = [
        graph("Likes an entry",
              "What arrives while Redis is busy shares an entry. More is cheaper for everybody "
              "behind.", "short", [
            (f'{rate(f"likestream_likes_accepted_total{{{INGEST}}}")} / '
             + rate(f'messaging_client_sent_messages_total{{{INGEST}, error_type=""}}'), "likes"),
        ], width=8),
        graph("Entries to Redis", "Sent a second, and by error those that were not taken.", "short",
              [
            (rate(f'messaging_client_sent_messages_total{{{INGEST}, error_type=""}}'), "taken"),
            (rate(f'messaging_client_sent_messages_total{{{INGEST}, error_type!=""}}',
                  "error_type"), "{{error_type}}"),
        ], width=8, runbook="Redis unavailable"),
        graph("How long Redis takes", "From sending an entry to its answer.", "s",
              quantiles(f"messaging_client_operation_duration_seconds_bucket{{{INGEST}}}", 0.5,
                        0.95, 0.99), width=8,
              runbook="Slow answers"),
    ]
    return dashboard("likestream-edge", "likestream: the edge",
                     "What callers see of ingest, and what ingest sees of Redis.", [
        ("HTTP", http), ("Redis", redis),
    ])


# fmt: on


def main():
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    for name, made in (("overview", overview()), ("edge", edge())):
        text = json.dumps(made, indent=2, ensure_ascii=False) + "\n"
        (folder / f"{name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
