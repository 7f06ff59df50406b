"""A full stack, started by `devstack up`, scraped by Prometheus and under load."""

import contextlib
import json
import os
import random
import threading

import requests

import prometheus
from sources import RULES
from support import output, wait_until

SCRAPED_S = 30
USERS, POSTS = 200_000, 50
CALLERS, PAUSE_S, BATCH_LIKES = 4, 0.02, 100


@contextlib.contextmanager
def up(programs, folder):
    """Yields the state of the stack. The stack and its data are removed after the block."""
    state = folder / "state.json"
    devstack = programs.folder / "devstack"
    environment = {**os.environ, "DEVSTACK_STATE": str(state)}
    output(devstack, "up", env=environment)
    try:
        yield json.loads(state.read_text())
    finally:
        output(devstack, "down", env=environment)


@contextlib.contextmanager
def scraped(state, folder):
    """Yields a Prometheus that scrapes the stack and evaluates the rules once per second."""
    jobs = []
    for name in ("ingest", "consumer"):
        parts = [part for part in state["parts"] if part["admin"] and part["name"].startswith(name)]
        target = {"targets": [part["admin"] for part in parts], "labels": {"namespace": "demo"}}
        jobs.append({"job_name": name, "static_configs": [target]})
    configuration = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": jobs,
    }
    expected = sum(len(job["static_configs"][0]["targets"]) for job in jobs)
    with prometheus.serving(folder, configuration) as server:

        def all_up():
            targets = [target["health"] for target in server.targets()]
            return targets == ["up"] * expected

        wait_until("all of the stack is scraped", all_up, SCRAPED_S)
        yield server


def request(number, dice):
    """Of a hundred requests 20 are batches, one is an invalid like, and one is not JSON."""
    if number % 100 == 98:
        return "/likes", json.dumps({"user_id": 0, "post_id": 42})
    if number % 100 == 99:
        return "/likes", "no JSON"
    likes = [
        {"user_id": dice.randint(1, USERS), "post_id": dice.randint(1, POSTS)}
        for _ in range(BATCH_LIKES)
    ]
    return (
        ("/likes/batch", json.dumps(likes)) if number % 5 == 0 else ("/likes", json.dumps(likes[0]))
    )


def send(url, seed, stop, failures):
    dice, number = random.Random(seed), 0
    with requests.Session() as session:
        session.headers["Content-Type"] = "application/json"
        while not stop.wait(PAUSE_S):
            path, body = request(number, dice)
            try:
                status = session.post(url + path, body, timeout=10).status_code
            except requests.RequestException as error:
                failures.append(f"POST {path}: {error}")
                return
            if status >= 500:
                failures.append(f"POST {path}: {status}")
            number += 1


@contextlib.contextmanager
def loaded(url):
    """Sends likes from several clients until the block ends. Yields the failures."""
    stop, failures = threading.Event(), []
    threads = [
        threading.Thread(target=send, args=(url, seed, stop, failures), daemon=True)
        for seed in range(CALLERS)
    ]
    for thread in threads:
        thread.start()
    try:
        yield failures
    finally:
        stop.set()
        for thread in threads:
            thread.join()
