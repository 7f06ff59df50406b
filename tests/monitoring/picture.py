"""Draws docs/dashboard.svg: panels of the dashboard while Postgres takes nothing for a while and consumers catch up. Arguments: the
folder of the programs, and the file."""

import math
import pathlib
import sys
import time

import prometheus_server
import sources
import stack as stacks
import svg
import trouble

# What is drawn, by its title in overview.json.
PANELS = ["Likes", "Backlog", "Age of the oldest", "From Redis to commit", "Batches by what closed them", "Failed transactions"]

# Before it the first rates are made.
WARM_UP_S = 25
WELL_S = 30
OUTAGE_S = 45
DRAINED_S = 120
AFTER_S = 30
LARGEST = 150_000


def name_of(row, legend):
    """As Grafana fills in a legend."""
    for label, value in row["metric"].items():
        legend = legend.replace(f"{{{{{label}}}}}", value)
    return legend


def overrides(panel, name):
    """What a panel fixes for one of its lines: (dashed, colour)."""
    dashed, colour = False, None
    for override in panel["fieldConfig"]["overrides"]:
        if override["matcher"]["options"] == name:
            properties = {prop["id"]: prop["value"] for prop in override["properties"]}
            dashed = "custom.lineStyle" in properties
            colour = svg.FIXED[properties["color"]["fixedColor"]]
    return dashed, colour


def lines(prometheus, panel, start, end):
    for target in panel["targets"]:
        for row in prometheus.over(sources.substituted(target["expr"]), start, end, 1):
            name = name_of(row, target["legendFormat"])
            points = [(float(at) - start, float(value)) for at, value in row["values"]]
            yield svg.Line(name, [point for point in points if not math.isnan(point[1])], *overrides(panel, name))


def drawn(prometheus, start, end):
    panels = {panel["title"]: panel for panel in sources.panels(sources.dashboards()["overview.json"]) if panel["type"] == "timeseries"}
    for title in PANELS:
        panel = panels[title]
        # The limit is far above whatever a small load reaches.
        shown = [line for line in lines(prometheus, panel, start, end) if line.name != "limit" and line.points]
        if not shown:
            raise RuntimeError(f"{title}: no data")
        stacked = "stacking" in panel["fieldConfig"]["defaults"]["custom"]
        yield svg.Drawing(title, panel["fieldConfig"]["defaults"]["unit"], shown, stacked)


def backlog(prometheus):
    return sum(float(row["value"][1]) for row in prometheus.now("max(likestream_backlog_entries)"))


def main():
    programs, file = sys.argv[1], pathlib.Path(sys.argv[2])
    sources.VARIABLES["$__rate_interval"] = "5s"
    with stacks.up(programs) as stack, stacks.scraped(stack) as prometheus, stacks.loaded(stack):
        time.sleep(WARM_UP_S)
        start = time.time()
        time.sleep(WELL_S)
        with trouble.read_only_database(stack):
            began = time.time()
            time.sleep(OUTAGE_S)
        ended = time.time()
        prometheus_server.wait_for("consumers catch up", lambda: backlog(prometheus) < 100, DRAINED_S)
        time.sleep(AFTER_S)
        end = time.time()
        drawings = list(drawn(prometheus, start, end))
    what = f"Panels of the dashboard: from {began - start:.0f} s on Postgres takes nothing for {ended - began:.0f} s, and consumers catch up"
    text = svg.picture(drawings, end - start, (began - start, ended - start), what)
    if len(text) > LARGEST:
        sys.exit(f"error: {file} would have {len(text)} bytes, more than {LARGEST}")
    file.write_text(text, encoding="utf-8")
    print(f"{file}: {len(text)} bytes")


if __name__ == "__main__":
    main()
