"""Ports of 127.0.0.1 for servers that are told theirs, and must find it free again when they are started anew."""

from __future__ import annotations

import random
import socket
from pathlib import Path

_HELD: list[socket.socket] = []  # as long as this process lives
_PICK = random.Random()


def _lowest_given_out() -> int:
    """The kernel gives ports from here on to whoever asks for any, and to every connection that goes out."""
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:
        return 32_768  # a kernel that does not say; Linux' own default


def free_port() -> int:
    """A port that nobody has, that the kernel gives to nobody, and that no other test process takes while this one lives."""
    for port in _PICK.sample(range(10_240, max(_lowest_given_out(), 20_000)), 1000):
        held = socket.socket(socket.AF_UNIX)
        try:
            held.bind(f"\0spendmeter-tests-port-{port}")  # goes with the process
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            held.close()
            continue
        _HELD.append(held)
        return port
    raise OSError("no port of 1000 is free")
