"""Trouble for a running stack, each until its block ends."""

import contextlib
import socket
import time
import urllib.parse

import psycopg

REDIS_TIMEOUT_S = 5
# For longer than checks take to fail.
SILENCE_S = 30


def redis(stack, *words):
    """A command. What Redis refuses is an error."""
    address = urllib.parse.urlsplit(stack.redis_url)
    words = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    command = b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)
    with socket.create_connection((address.hostname, address.port), REDIS_TIMEOUT_S) as connection:
        connection.sendall(command)
        answer = connection.makefile("rb").readline()
    if answer.startswith(b"-"):
        raise RuntimeError(f"Redis: {answer.decode().strip()}")


@contextlib.contextmanager
def read_only_database(stack):
    """Postgres takes nothing, from sessions that are open either. That may pass by itself."""
    with psycopg.connect(stack.database_url, autocommit=True) as connection:
        connection.execute("SET default_transaction_read_only = off")
        connection.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        connection.execute("SELECT pg_reload_conf()")
        yield
        connection.execute("ALTER SYSTEM RESET default_transaction_read_only")
        connection.execute("SELECT pg_reload_conf()")


@contextlib.contextmanager
def no_table(stack):
    """The table is gone, which somebody has to mend."""
    with psycopg.connect(stack.database_url, autocommit=True) as connection:
        connection.execute("ALTER TABLE likes RENAME TO likes_away")
        yield
        connection.execute("ALTER TABLE likes_away RENAME TO likes")


@contextlib.contextmanager
def full_redis(stack):
    """Redis has more than it may have, and takes nothing new."""
    redis(stack, "CONFIG", "SET", "maxmemory", 1)
    yield
    redis(stack, "CONFIG", "SET", "maxmemory", 0)


@contextlib.contextmanager
def nonsense(stack):
    """A producer writes what is no like."""
    redis(stack, "XADD", "likes:{0}", "*", "l", b"\xc1")
    yield


@contextlib.contextmanager
def silent_redis(stack):
    """Redis is there and answers nobody, not even who would tell it to end that."""
    end = time.monotonic() + SILENCE_S
    redis(stack, "CLIENT", "PAUSE", SILENCE_S * 1000, "ALL")
    yield
    time.sleep(max(0, end - time.monotonic()))
