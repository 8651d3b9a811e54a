from __future__ import annotations

import select
import threading
from collections.abc import Iterator

import pytest

from ocfcluster.net.memory import MemoryHub, MemoryTransport
from ocfcluster.net.transport import Transport
from tests.unit.net_support import all_datagrams, receive_datagrams


@pytest.fixture
def nodes() -> Iterator[list[MemoryTransport]]:
    hub = MemoryHub()
    made = [hub.transport(receive_buffer_bytes=1000) for _ in range(3)]
    yield made
    for node in made:
        node.close()


def readable(transport: Transport) -> bool:
    return bool(select.select(transport.filenos(), [], [], 0)[0])


def test_multicast_reaches_all_others_and_send_one(nodes: list[MemoryTransport]) -> None:
    one, two, three = nodes
    one.multicast(b"aabbc", 2)
    two.send(three.address, b"alone", 5)
    assert one.receive(10) == []
    assert two.receive(10) == [(b"aabbc", 2, one.address)]
    assert three.receive(10) == [(b"aabbc", 2, one.address), (b"alone", 5, two.address)]
    one.send(two.address, b"short", 9)
    assert two.receive(10) == [(b"short", 5, one.address)]


def test_the_descriptor_is_readable_exactly_while_something_waits(nodes: list[MemoryTransport]) -> None:
    one, two, _ = nodes
    assert not readable(two)
    for data in (b"1", b"2", b"3"):
        one.send(two.address, data, 1)
    assert readable(two)
    assert all_datagrams(two.receive(2)) == [b"1", b"2"]
    assert readable(two)
    assert all_datagrams(two.receive(2)) == [b"3"]
    assert not readable(two)
    one.send(two.address, b"4", 1)
    assert readable(two)


def test_what_overflows_is_dropped_and_counted(nodes: list[MemoryTransport]) -> None:
    one, two, _ = nodes
    one.send(two.address, bytes(600), 100)
    one.send(two.address, bytes(600), 100)
    one.send(two.address, bytes(400), 400)
    assert [len(buffer) for buffer, _, _ in two.receive(10)] == [600, 400]
    assert two.counters == {"receive_dropped": 6}
    one.send(two.address, bytes(1000), 1000)
    assert len(two.receive(10)) == 1


def test_a_closed_transport_neither_sends_nor_receives(nodes: list[MemoryTransport]) -> None:
    one, two, three = nodes
    one.send(two.address, b"lost", 4)
    two.close()
    two.close()
    one.multicast(b"x", 1)
    one.send(two.address, b"x", 1)
    two.multicast(b"y", 1)
    two.send(one.address, b"y", 1)
    assert two.receive(10) == one.receive(10) == []
    assert three.receive(10) == [(b"x", 1, one.address)]


def test_too_many_segments_are_the_callers_error(nodes: list[MemoryTransport]) -> None:
    with pytest.raises(ValueError, match="65 segments"):
        nodes[0].multicast(bytes(65), 1)
    with pytest.raises(ValueError, match="65 segments"):
        nodes[0].send(nodes[1].address, bytes(65), 1)


def test_threads_may_have_a_transport_each() -> None:
    hub = MemoryHub()
    receiver = hub.transport()
    senders = [hub.transport() for _ in range(4)]
    threads = [
        threading.Thread(
            target=lambda node=node: [node.send(receiver.address, b"%d" % i, 4) for i in range(500)]
        )
        for node in senders
    ]
    for thread in threads:
        thread.start()
    received = receive_datagrams(receiver, 2000)
    for thread in threads:
        thread.join()
    for sender in senders:
        mine = [int(buffer) for buffer, _, source in received if source == sender.address]
        assert mine == list(range(500))
    assert not readable(receiver)
    for node in (receiver, *senders):
        node.close()


def test_an_embedded_single_node_has_nobody_to_reach() -> None:
    alone = MemoryHub().transport()
    alone.multicast(b"x", 1)
    assert alone.receive(10) == []
    assert alone.mtu == 9000
    alone.close()
