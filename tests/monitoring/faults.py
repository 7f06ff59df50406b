"""Context managers that cause a fault in a running stack and end it with the block."""

import contextlib
import time

import psycopg
import redis

# Longer than checks take to fail.
SILENCE_S = 30


def ask_redis(state, *words):
    with redis.Redis.from_url(state["redis_url"]) as client:
        client.execute_command(*words)


@contextlib.contextmanager
def statements(state, before, after):
    with psycopg.connect(state["database_url"], autocommit=True) as connection:
        for statement in before:
            connection.execute(statement)
        yield
        for statement in after:
            connection.execute(statement)


def read_only_database(state):
    """Makes Postgres read-only, for open sessions too. A transient error."""
    setting, reload = "default_transaction_read_only", "SELECT pg_reload_conf()"
    return statements(
        state,
        [f"SET {setting} = off", f"ALTER SYSTEM SET {setting} = on", reload],
        [f"ALTER SYSTEM RESET {setting}", reload],
    )


def no_table(state):
    """Renames the table away. A halting error."""
    away, back = "likes RENAME TO likes_away", "likes_away RENAME TO likes"
    return statements(state, [f"ALTER TABLE {away}"], [f"ALTER TABLE {back}"])


@contextlib.contextmanager
def full_redis(state):
    """Puts Redis over its memory limit, so that it refuses appends."""
    ask_redis(state, "CONFIG", "SET", "maxmemory", 1)
    yield
    ask_redis(state, "CONFIG", "SET", "maxmemory", 0)


@contextlib.contextmanager
def malformed_entry(state):
    """Appends an undecodable entry."""
    ask_redis(state, "XADD", "likes:{0}", "*", "l", b"\xc1")
    yield


@contextlib.contextmanager
def silent_redis(state):
    """Pauses the replies of Redis for SILENCE_S. The pause cannot be ended early."""
    end = time.monotonic() + SILENCE_S
    ask_redis(state, "CLIENT", "PAUSE", SILENCE_S * 1000, "ALL")
    yield
    time.sleep(max(0, end - time.monotonic()))
