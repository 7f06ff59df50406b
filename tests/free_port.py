"""Ports for servers of the checks."""

import contextlib
import pathlib
import random
import socket

# Those below are often other servers'.
FIRST = 10_000
TRIES = 1_000


def free_port():
    """
    A port on loopback that nobody listens on just now, below those that the system takes for the near ends of connections: whoever asks on such
    a one for a server that isn't there yet can come to be connected to himself, and then the server can't have it.
    """
    end = int(pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()[0])
    for _ in range(TRIES):
        # Where the system takes nearly all there is no better choice than to share.
        port = random.randrange(FIRST, end if end > 2 * FIRST else 32_768)
        with socket.socket() as server, contextlib.suppress(OSError):
            server.bind(("127.0.0.1", port))
            return port
    raise RuntimeError(f"no free port on loopback from {FIRST} on")
