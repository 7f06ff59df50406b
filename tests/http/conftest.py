"""Fixtures for ingest and Redis. `devstack run` starts both and sets their addresses."""

import os

import pytest
import redis


@pytest.fixture(scope="session")
def likes_url():
    if "LIKES_URL" not in os.environ:
        pytest.fail("LIKES_URL is not set; run: devstack run -- python -m pytest tests/http")
    return os.environ["LIKES_URL"]


@pytest.fixture
def streams(likes_url):
    """A Redis client. The streams are empty at the start of each test."""
    with redis.Redis.from_url(os.environ["REDIS_URL"]) as client:
        for key in client.scan_iter(match="likes:{*}", _type="stream"):
            client.delete(key)
        yield client


@pytest.fixture(scope="session")
def httpserver_listen_address():
    return "127.0.0.1", 0
