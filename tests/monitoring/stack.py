"""The whole of likestream, started by `devstack up`, under load and scraped by a Prometheus that has the rules."""

import contextlib
import http.client
import itertools
import json
import os
import pathlib
import random
import subprocess
import tempfile
import threading
import time
import urllib.parse

import prometheus_server
import sources

UP_S = 120
DOWN_S = 120
SCRAPED_S = 30
USERS = 200_000
POSTS = 50


class Stack:
    def __init__(self, state):
        self.likes_url = state["ingest_url"]
        self.database_url = state["database_url"]
        self.redis_url = state["redis_url"]
        admins = {part["name"]: part["admin"] for part in state["parts"] if part["admin"]}
        self.ingest = [address for name, address in admins.items() if name.startswith("ingest")]
        self.consumers = [address for name, address in admins.items() if name.startswith("consumer")]


@contextlib.contextmanager
def up(programs):
    """It ends with the block, and its data with it."""
    devstack = pathlib.Path(programs) / "devstack"
    with tempfile.TemporaryDirectory(prefix="likestream-monitoring-") as folder:
        state = pathlib.Path(folder) / "state.json"
        environment = {**os.environ, "DEVSTACK_STATE": str(state)}

        def run(command, timeout_s):
            ended = subprocess.run([devstack, command], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                                   timeout=timeout_s, check=False)
            if ended.returncode:
                raise RuntimeError(f"devstack {command}: {(ended.stdout + ended.stderr).strip()}")

        run("up", UP_S)
        try:
            yield Stack(json.loads(state.read_text(encoding="utf-8")))
        finally:
            run("down", DOWN_S)


@contextlib.contextmanager
def scraped(stack):
    """Once a second, and the rules are evaluated as often."""
    def job(name, addresses):
        return {"job_name": name, "static_configs": [{"targets": addresses, "labels": {"namespace": "demo"}}]}

    configuration = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(sources.RULES)],
        "scrape_configs": [job("ingest", stack.ingest), job("consumer", stack.consumers)],
    }
    with prometheus_server.running(configuration) as prometheus:
        def all_up():
            targets = prometheus.targets()
            return len(targets) == len(stack.ingest + stack.consumers) and all(target["health"] == "up" for target in targets)

        prometheus_server.wait_for("all of the stack is scraped", all_up, SCRAPED_S)
        yield prometheus


def like(dice):
    return {"user_id": dice.randint(1, USERS), "post_id": dice.randint(1, POSTS)}


def request(number, dice, batch_likes):
    """Of a hundred requests 20 are batches, one is no like, and one is not even JSON."""
    if number % 100 == 98:
        return "/likes", {"user_id": 0, "post_id": 42}
    if number % 100 == 99:
        return "/likes", "no JSON"
    if number % 5 == 0:
        return "/likes/batch", [like(dice) for _ in range(batch_likes)]
    return "/likes", like(dice)


def send(url, seed, pause_s, batch_likes, stop, failures):
    dice = random.Random(seed)
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc, timeout=10)
    for number in itertools.count():
        if stop.is_set():
            return
        path, body = request(number, dice, batch_likes)
        body = body if isinstance(body, str) else json.dumps(body)
        try:
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
        except OSError as error:
            failures.append(f"POST {path}: {error}")
            return
        if answer.status >= 500:
            failures.append(f"POST {path}: {answer.status}")
        time.sleep(pause_s)


@contextlib.contextmanager
def loaded(stack, callers=4, pause_s=0.02, batch_likes=100):
    """Callers send likes until the block ends. Gives what went wrong."""
    stop, failures = threading.Event(), []
    threads = [
        threading.Thread(target=send, args=(stack.likes_url, seed, pause_s, batch_likes, stop, failures), daemon=True)
        for seed in range(callers)
    ]
    for thread in threads:
        thread.start()
    try:
        yield failures
    finally:
        stop.set()
        for thread in threads:
            thread.join()
