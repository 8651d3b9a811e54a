"""What the tests of the transports share."""

from __future__ import annotations

import random
import select
import socket
import time

from ocfcluster.net.interfaces import Interface
from ocfcluster.net.transport import Received, Transport

_random = random.SystemRandom()  # not seeded: tests that run side by side must not meet


def loopback(family: int = socket.AF_INET) -> Interface:
    """The real one, but with an mtu that makes sizes like those of a network."""
    address, prefix_length = ("127.0.0.1", 8) if family == socket.AF_INET else ("::1", 128)
    return Interface(
        "lo", address, family, prefix_length, 1500, socket.if_nametoindex("lo"), True, True, False
    )


def random_group(family: int = socket.AF_INET) -> str:
    low, high = _random.randrange(1, 255), _random.randrange(256)
    return f"239.192.{high}.{low}" if family == socket.AF_INET else f"ff15::{high:x}:{low:x}"


def random_port() -> int:
    return _random.randrange(20_000, 32_000)  # below the range of which the kernel gives port 0


def receive_datagrams(transport: Transport, count: int, timeout: float = 5.0) -> list[Received]:
    """Buffers until ``count`` datagrams are there (or more, or time is up)."""
    received: list[Received] = []
    deadline = time.monotonic() + timeout
    while datagrams(received) < count and time.monotonic() < deadline:
        select.select(transport.filenos(), [], [], max(0.0, deadline - time.monotonic()))
        received += transport.receive(32)
    return received


def datagrams(received: list[Received]) -> int:
    return sum(len(split(buffer, segment)) for buffer, segment, _ in received)


def split(buffer: bytes, segment: int) -> list[bytes]:
    return [buffer[start : start + segment] for start in range(0, len(buffer), segment)]


def all_datagrams(received: list[Received]) -> list[bytes]:
    return [datagram for buffer, segment, _ in received for datagram in split(buffer, segment)]


def numbered_buffer(segments: int, segment: int, last: int) -> bytes:
    """``segments`` datagrams that all differ, of ``segment`` bytes, the last of ``last``."""
    made = [number.to_bytes(2, "big") + bytes([number]) * (segment - 2) for number in range(segments)]
    return b"".join(made)[: (segments - 1) * segment + last]
