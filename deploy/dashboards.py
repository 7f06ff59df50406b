"""Writes the Grafana dashboards to chart/files/dashboards, or to the folder given as argument.

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
    """Query of the rate per second of a counter, summed over processes."""
    return f"sum{by and f' by ({by}) '}(rate({metric}[$__rate_interval]))"


def quantiles(metric, *wanted, by=""):
    """Targets of a histogram, one per quantile. The labels in `by` are kept."""
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
    A panel of any kind. `targets` are pairs of a query and its legend, `steps` pairs of a threshold
    and its colour, `runbook` is the title of a section.
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
    """The current value, in the colour of its threshold."""
    more["options"] = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "value",
        "graphMode": "area",
        "textMode": "value",
    }
    more.setdefault("defaults", {})["color"] = {"mode": "thresholds"}
    return panel("stat", (3, 4), title, description, unit, [(query, title)], **more)


def graph(title, description, unit, targets, *, width=8, stacked=False, **more):
    """Lines over time, or stacked areas. Thresholds are dashed lines."""
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
    """Panels with ids and positions. `rows` are pairs of a title and its panels."""
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


# The calls below read as tables: one argument per line would be harder to read.
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
        stat("Accepted", "Likes accepted by Redis, per second.", "short",
             rate(f"likestream_likes_accepted_total{{{INGEST}}}")),
        stat("Stored", "Rows inserted into the table, per second.", "short",
             rate(f"likestream_rows_inserted_total{{{CONSUMER}}}")),
        stat("Refused",
             "POST requests answered with 5xx in the last 5 minutes."
             " The objective is less than 0.1 %.",
             "percentunit",
             f"max(likestream:requests_failed:ratio_rate5m{{{INGEST}}})", runbook="Likes refused",
             steps=[(0.001, "orange"), (0.0144, "red")], defaults={"max": 1}),
        stat("Backlog", "Entries not stored yet: lag and pending.", "short",
             group_backlog, runbook="Backlog grows"),
        stat("Limit used",
             "Backlog relative to INGEST_BACKLOG_LIMIT. Ingest refuses likes at 100 %.",
             "percentunit",
             f"{ingest_backlog} / {limit}", runbook="Backlog limit",
             steps=[(0.5, "orange"), (0.9, "red")], defaults={"max": 1}),
        stat("Oldest like", "Age of the oldest unstored like.", "s",
             f"max(likestream:oldest_age_seconds:max{{{CONSUMER}}})", runbook="Backlog too old",
             steps=[(60, "orange"), (900, "red")]),
        stat("Dead letters", "Dead letters in Redis. An operator retries or purges them.", "short",
             "sum(max by (namespace, job, partition)"
             f" (likestream_partition_dead_letters{{{CONSUMER}}}))", runbook="Dead letters",
             steps=[(1, "orange")]),
        stat("Failing checks", "Failing checks of /readyz. The last row shows the processes.",
             "short",
             f"count(likestream_check_passing{{{BOTH}}} == 0)"
             f" or 0 * count(likestream_check_passing{{{BOTH}}})",
             runbook="Not ready", steps=[(1, "red")]),
    ]
    likes = [
        graph("Likes",
              "Likes accepted by ingest, inserted into the table, and deduplicated, per second.",
              "short", [
            (rate(f"likestream_likes_accepted_total{{{INGEST}}}"), "accepted"),
            (rate(f"likestream_rows_inserted_total{{{CONSUMER}}}"), "inserted"),
            (rate(f"likestream_likes_deduplicated_total{{{CONSUMER}}}"), "deduplicated"),
        ]),
        graph("Backlog",
              "Entries not stored yet: of the consumer group, and of the slowest of all groups, "
              "which ingest measures. Ingest refuses likes at the limit.",
              "short",
              [(group_backlog, "consumer group"), (ingest_backlog, "slowest group"),
               (limit, "limit")], runbook="Backlog limit",
              overrides=[{
                  "matcher": {"id": "byName", "options": "limit"},
                  "properties": [
                      {"id": "color", "value": {"mode": "fixed", "fixedColor": "red"}},
                      {"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [10, 10]}},
                      {"id": "custom.fillOpacity", "value": 0},
                  ],
              }]),
        graph("Oldest age",
              "Age of the oldest unstored like, and of the oldest pending entry.",
              "s", [
            (f"max(likestream:oldest_age_seconds:max{{{CONSUMER}}})", "oldest"),
            (f"max(likestream:partition_oldest_pending_age_seconds:max{{{CONSUMER}}})",
             "oldest pending"),
        ], runbook="Backlog too old", steps=[(900, "red")]),
        graph("Backlog by partition",
              "A partition with a larger backlog has no consumer, or a stuck entry.", "short", [
            (f"max by (partition) (likestream_partition_backlog_entries{{{CONSUMER}}})",
             "{{partition}}"),
        ], stacked=True, runbook="Backlog grows"),
        graph("Pending entries by partition", "Entries delivered and not acknowledged.", "short", [
            (f"max by (partition) (likestream_partition_pending_entries{{{CONSUMER}}})",
             "{{partition}}"),
        ], stacked=True, runbook="Stuck pending"),
        graph("Refused requests",
              "By problem code. 5xx: likestream or Redis failed. 4xx: the client did.", "reqps", [
            (rate(f"likestream_requests_refused_total{{{INGEST}}}", "code"), "{{code}}"),
        ], stacked=True, runbook="Likes refused"),
    ]
    latency = [
        graph("Request latency", "Duration of POST requests, as ingest measures it.", "s",
              quantiles(f"http_server_request_duration_seconds_bucket{{{POST}}}", 0.5, 0.95, 0.99),
              runbook="Slow responses",
              steps=[(0.5, "red")]),
        graph("End-to-end latency",
              "Time from accept to commit of the oldest entry of each batch and partition, by the "
              "clocks of Redis and the consumer.", "s",
              quantiles(f"likestream_end_to_end_latency_seconds_bucket{{{CONSUMER}}}", 0.5,
                        0.95, 0.99),
              runbook="High end-to-end latency", steps=[(10, "red")]),
        graph("Postgres transactions", "Duration of transactions, committed or failed.", "s",
              quantiles(f"db_client_operation_duration_seconds_bucket{{{CONSUMER}}}", 0.5, 0.95,
                        0.99), runbook="Postgres write failures"),
        graph("Redis p99 by command",
              "Duration of Redis commands, measured by ingest and consumers.", "s",
              quantiles(f"messaging_client_operation_duration_seconds_bucket{{{BOTH}}}", 0.99,
                        by="messaging_operation_name"), runbook="Slow responses"),
        graph("Redis commands", "Calls per second.", "ops", [
            (rate(f"messaging_client_operation_duration_seconds_count{{{BOTH}}}",
                  "messaging_operation_name"), "{{messaging_operation_name}}"),
        ]),
        graph("Postgres connections", "Used and idle connections of all consumers.", "short", [
            (f"sum by (db_client_connection_state) (db_client_connection_count{{{CONSUMER}}})",
             "{{db_client_connection_state}}"),
        ], stacked=True),
    ]
    batches = [
        graph("Batches by flush reason",
              "full: consumers are behind. linger: they keep up. shutdown: a consumer drains.",
              "ops", [
            (rate(f"likestream_batches_committed_total{{{CONSUMER}}}", "flush"), "{{flush}}"),
        ], stacked=True),
        graph("Rows per batch",
              "Larger batches cost less per row. BATCH_ROWS closes a batch as full.", "short",
              quantiles(f"likestream_batch_rows_bucket{{{CONSUMER}}}", 0.5, 0.95)),
        graph("Failed transactions",
              "retry: a transient error. halt: needs an operator. fallback: a direct copy failed "
              "and the batch was staged.", "ops", [
            (rate(f"likestream_batches_failed_total{{{CONSUMER}}}", "class"), "{{class}}"),
            (rate(f"likestream_direct_copy_fallbacks_total{{{CONSUMER}}}"), "fallback"),
        ], runbook="Postgres write failures"),
    ]
    entries = [
        graph("Entries",
              "Entries delivered, acknowledged and trimmed, per second. The rates are equal except "
              "for short times.", "short", [
            (rate(f"messaging_client_consumed_messages_total{{{CONSUMER}}}"), "delivered"),
            (rate(f"likestream_entries_acknowledged_total{{{CONSUMER}}}"), "acknowledged"),
            (rate(f"likestream_entries_trimmed_total{{{CONSUMER}}}"), "trimmed"),
        ]),
        graph("Redeliveries",
              "Entries delivered again, to the same consumer or by a claim. A high rate means that "
              "consumers die.", "short", [
            (rate(f"likestream_entries_reclaimed_total{{{CONSUMER}}}"), "reclaimed"),
        ], runbook="Stuck pending"),
        graph("Dead letters", "Dead letters written per second, by reason.", "short", [
            (rate(f"likestream_dead_letters_total{{{CONSUMER}}}", "reason"), "{{reason}}"),
        ], stacked=True, runbook="Dead letters"),
        graph("Lost entries",
              "Entries deleted from a stream before they were stored, per hour: data loss.",
              "short", [
            (f"sum(increase(likestream_entries_lost_total{{{CONSUMER}}}[1h]))", "lost"),
        ], runbook="Lost entries", steps=[(1, "red")]),
        graph("Open incidents",
              "Incidents that no operator has acknowledged, by kind: likes are lost, or may be.",
              "short", [
            (f"max by (kind) (likestream_incidents_open{{{CONSUMER}}})", "{{kind}}"),
        ], runbook="Incidents", steps=[(1, "red")]),
        graph("Trim failures",
              "Failures per second. Stored entries stay in the memory of Redis.", "ops", [
            (rate(f"likestream_trim_failures_total{{{CONSUMER}}}"), "failures"),
        ], runbook="Trim failures"),
        graph("Append retries",
              "Appends retried after a lost reply, a failover or a moved slot. Each like is still "
              "stored once.", "short", [
            (rate(f"likestream_append_retries_total{{{INGEST}}}"), "retries"),
        ], runbook="Append retries"),
    ]
    processes = [
        graph("Partitions by consumer",
              "Consumers share partitions evenly. A step is a rebalance.", "short", [
            (f"sum by (instance) (likestream_partitions_owned{{{CONSUMER}}})", "{{instance}}"),
        ], stacked=True, runbook="Consumer flapping"),
        graph("Unread partitions",
              "orphaned: no consumer reads them. paused: an operator paused them.", "short", [
            (f"max(likestream_partitions_orphaned{{{CONSUMER}}})", "orphaned"),
            (f"sum(likestream_partitions_paused{{{CONSUMER}}})", "paused"),
        ], runbook="Partitions without a consumer"),
        graph("Checks of /readyz", "By process and check: 1 passes, 0 fails.", "short", [
            (f"min by (instance, check) (likestream_check_passing{{{BOTH}}})",
             "{{instance}} {{check}}"),
        ], runbook="Not ready", defaults={"max": 1}),
    ]
    return dashboard("likestream-overview", "likestream",
                     "For the operator on call: likes from accept to commit.", [
        ("Now", now), ("Likes", likes), ("Latency", latency), ("Batches", batches),
        ("Entries", entries), ("Processes", processes),
    ])


def edge():
    requests = f"http_server_request_duration_seconds_count{{{INGEST}}}"
    http = [
        graph("Requests", "Requests per second by route and status.", "reqps", [
            (rate(requests, "http_route, http_response_status_code"),
             "{{http_route}} {{http_response_status_code}}"),
        ], width=12, stacked=True, runbook="Likes refused"),
        graph("Failed requests",
              "POST requests answered with 5xx, over 5 minutes and over an hour. Both above the "
              "line cause a page.", "percentunit", [
            (f"max(likestream:requests_failed:ratio_rate5m{{{INGEST}}})", "5m"),
            (f"max(likestream:requests_failed:ratio_rate1h{{{INGEST}}})", "1h"),
        ], width=12, runbook="Likes refused", steps=[(0.0144, "red")]),
        graph("Request latency, p99 by route",
              "From the head of the request to the head of the response.", "s",
              quantiles(f"http_server_request_duration_seconds_bucket{{{INGEST}}}", 0.99,
                        by="http_route"), width=12,
              runbook="Slow responses", steps=[(0.5, "red")]),
        graph("Request latency of POST /likes", "Requests with a single like.", "s",
              quantiles(f'http_server_request_duration_seconds_bucket{{{POST}, '
                        'http_route="/likes"}', 0.5, 0.9, 0.99, 0.999), width=12,
              runbook="Slow responses", steps=[(0.5, "red")]),
        graph("Requests in flight",
              "By ingest process. INGEST_MAX_REQUESTS is the limit of each one.", "short", [
            (f"sum by (instance) (http_server_active_requests{{{INGEST}}})", "{{instance}}"),
        ], width=12, stacked=True),
        graph("Connections",
              "Client connections by ingest process. INGEST_MAX_CONNECTIONS is the limit of each "
              "one.", "short", [
            (f"sum by (instance) (likestream_connections_open{{{INGEST}}})", "{{instance}}"),
        ], width=12, stacked=True),
        graph("Refused requests by code", "The README explains the codes.", "reqps", [
            (rate(f"likestream_requests_refused_total{{{INGEST}}}", "code"), "{{code}}"),
        ], width=24, stacked=True, runbook="Likes refused"),
    ]
    redis = [
        graph("Likes per entry",
              "Likes that arrive while Redis is busy share an entry. Larger entries cost Redis and "
              "consumers less per like.", "short", [
            (f'{rate(f"likestream_likes_accepted_total{{{INGEST}}}")} / '
             + rate(f'messaging_client_sent_messages_total{{{INGEST}, error_type=""}}'), "likes"),
        ], width=8),
        graph("Appended entries",
              "Entries sent to Redis per second: accepted ones, and failed ones by error.", "short",
              [
            (rate(f'messaging_client_sent_messages_total{{{INGEST}, error_type=""}}'), "accepted"),
            (rate(f'messaging_client_sent_messages_total{{{INGEST}, error_type!=""}}',
                  "error_type"), "{{error_type}}"),
        ], width=8, runbook="Redis unavailable"),
        graph("Append latency", "From sending an entry to the reply of Redis.", "s",
              quantiles(f"messaging_client_operation_duration_seconds_bucket{{{INGEST}}}", 0.5,
                        0.95, 0.99), width=8,
              runbook="Slow responses"),
    ]
    return dashboard("likestream-edge", "likestream: the edge",
                     "HTTP requests to ingest, and its appends to Redis.", [
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
