"""Who takes nothing, by what the kernel says of a real socket: never one that takes its events, always one that does
not."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator

import pytest

from ocfcluster.ipc.delivery import Hub
from ocfcluster.ipc.stuck import Outstanding, look, outstanding, unread_bytes
from ocfcluster.ipc.subscription import Held, Subscription
from ocfcluster.limits import EVENT_SOCKET_SEND_BYTES, RECORD_HEADER_BYTES
from ocfcluster.wire.frames import RECORD_HEADER, RecordKind
from tests.unit.test_ipc_delivery import Shell

TOPIC = 16


class Bench:
    def __init__(self) -> None:
        self.own, lent = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        lent.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, EVENT_SOCKET_SEND_BYTES)
        self.lent = lent
        self.hub = Hub(Shell())
        self.subscription: Subscription = self.hub.add(
            self.hub.open_line(1), 1, lent, {TOPIC: "t"}, callback=False
        )
        self.seq = 0
        self.now = 0

    def write(self, size: int = 50) -> None:
        self.seq += 1
        header = RECORD_HEADER.pack(
            RECORD_HEADER_BYTES + size, RecordKind.RUN, 0, 0, 0, 1, 1, 1, self.seq, 1, 0
        )
        self.hub.deliver(TOPIC, header, bytes(size), self.seq, self.seq)
        self.hub.flush(self.now)
        if self.subscription.blocked:
            self.hub.writable(self.subscription, self.now)

    def read(self) -> bool:
        try:
            self.own.recv(1, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        if self.subscription.blocked:
            self.hub.writable(self.subscription, self.now)
        return True

    def look(self) -> Outstanding | None:
        self.now += 1
        look(self.subscription, self.now, unread_bytes(self.lent))
        return outstanding(self.subscription)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.own.close()
    made.lent.close()


def test_nothing_is_outstanding_where_all_was_taken(bench: Bench) -> None:
    assert bench.look() is None
    bench.write()
    assert bench.look() == Outstanding("t", 1, 2, False)
    bench.read()
    assert bench.look() is None


@pytest.mark.parametrize("size", [0, 50, 5000, 60_000])
def test_one_that_takes_nothing_is_seen_from_its_first_event_on(bench: Bench, size: int) -> None:
    bench.write(size)
    first = bench.look()
    for _ in range(400):  # far beyond what the socket holds
        bench.write(size)
        assert bench.look() == first == Outstanding("t", 1, 1, False)
    bench.read()
    while bench.read():
        pass
    assert bench.look() is None


@pytest.mark.parametrize("seed", range(10))
def test_one_that_takes_its_events_is_not_called_stuck(bench: Bench, seed: int) -> None:
    """It lags all the time, and something is unread at each look."""
    chance = random.Random(seed)
    size = chance.choice((0, 50, 500))
    for _ in range(chance.randint(1, 100)):
        bench.write(size)
    for _ in range(200):
        for _ in range(chance.randint(1, 20)):
            bench.write(size)
            bench.read()
        found = bench.look()
        assert found is None or bench.now - found.since <= 1


def test_what_the_library_said_is_not_done_counts_too(bench: Bench) -> None:
    bench.hub.set_out_of_line(bench.subscription, True, Held("t", 7, 3))
    assert bench.look() == Outstanding("t", 7, 3, True)
    bench.write()
    bench.now = 9
    assert bench.look() == Outstanding("t", 7, 3, True)  # the older of the two
    bench.hub.set_out_of_line(bench.subscription, False)
    assert bench.look() == Outstanding("t", 1, 10, False)


def test_a_socket_that_cannot_be_asked() -> None:
    own, lent = socket.socketpair()
    own.close()
    lent.close()
    assert unread_bytes(lent) == -1
    assert unread_bytes(object()) == -1
