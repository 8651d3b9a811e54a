"""Sealed traffic over a transport: a node's bytes on both ends, nothing of them between, and reports beside them."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from ocfcluster import limits
from ocfcluster.limits import SEAL_BYTES, SEGMENT_COUNT
from ocfcluster.net.memory import MemoryHub, MemoryTransport
from ocfcluster.net.redundant import OURS_BYTES, RedundantTransport
from ocfcluster.net.sealed import SealedTraffic
from ocfcluster.net.transport import Address
from ocfcluster.protocol.effects import Multicast
from ocfcluster.protocol.outbox import Outbox
from ocfcluster.wire import sealing
from ocfcluster.wire.datagram import Extent, clear_prefix, cluster_hash, packets_per_buffer
from ocfcluster.wire.keys import ClusterKey
from tests.keyed import new_key

KEY = new_key()
NEW = new_key(KEY)


class End:
    """A node's sealed traffic over one memory network, or several."""

    def __init__(self, node_id: int, *hubs: MemoryHub, keys: tuple[ClusterKey, ...] = (KEY,)) -> None:
        self.prefix = clear_prefix(cluster_hash("c"), node_id, node_id * 11, 5)
        self.transports: list[MemoryTransport] = [hub.transport() for hub in hubs]
        named = [(str(number), one) for number, one in enumerate(self.transports)]
        self.transport = (
            self.transports[0] if len(hubs) == 1 else RedundantTransport(named, self.prefix[:OURS_BYTES])
        )
        self.complaints: list[tuple[str, Address]] = []
        self.traffic = SealedTraffic(
            self.transport, "c", node_id, node_id * 11, keys, lambda *said: self.complaints.append(said)
        )
        self.outbox = Outbox(self.prefix)

    def multicast(self, body: bytes) -> bytes:
        """One datagram to all; as the node made it."""
        self.outbox.effects.clear()
        self.outbox.multicast(body)
        (effect,) = self.outbox.effects
        assert isinstance(effect, Multicast)
        self.traffic.multicast(effect.buffer, effect.segment)
        return effect.buffer

    def got(self) -> list[bytes]:
        return [buffer for buffer, _, _ in self.traffic.receive(64)]


def test_what_was_sent_arrives_as_it_was() -> None:
    hub = MemoryHub()
    one, two = End(1, hub), End(2, hub)
    sent = one.multicast(b"\x06hello")
    assert two.got() == [sent]
    one.traffic.send(
        two.transport.address, two_bytes := one.prefix + b"\x09" + bytes(7) + b"\x06only you", 41
    )
    assert two.got() == [two_bytes]
    assert one.traffic.counters == dict.fromkeys(sealing.OUTCOMES, 0)


def test_between_the_ends_nothing_is_in_the_clear() -> None:
    hub = MemoryHub()
    one, listener = End(1, hub), hub.transport()
    one.multicast(b"\x06" + b"secret" * 20)
    assert b"secret" not in b"".join(buffer for buffer, _, _ in listener.receive(64))


def test_the_keys_of_the_others_are_known_once_they_have_spoken() -> None:
    hub = MemoryHub()
    one, two = End(1, hub, keys=(KEY, NEW)), End(2, hub)
    one.multicast(b"\x06")
    two.got()
    assert two.traffic.peer_keys[(1, 11)].key_ids == (KEY.id, NEW.id)
    one.multicast(b"\x06")
    assert len(two.got()) == 1, "the next report is a second later"
    one.traffic.use((NEW, KEY))
    one.multicast(b"\x06")  # this one tells
    assert two.traffic.peer_keys[(1, 11)].key_ids == (KEY.id, NEW.id)
    two.traffic.use((KEY, NEW))
    two.got()
    assert two.traffic.peer_keys[(1, 11)].key_ids == (NEW.id, KEY.id)


def test_a_report_that_the_kernel_put_behind_another_datagram_is_taken() -> None:
    one, two = End(1, MemoryHub()), End(2, MemoryHub())
    datagram = one.prefix + (1).to_bytes(8, "little") + bytes(200)
    sealed = one.traffic._sealer.seal(datagram, len(datagram))
    report = one.traffic._sealer.report([KEY.id])
    assert len(report) < len(sealed)
    opened = two.traffic._open((sealed + report, len(sealed), one.transport.address))
    assert [buffer for buffer, _, _ in opened] == [datagram]
    assert two.traffic.peer_keys[(1, 11)].key_ids == (KEY.id,)


def test_keys_that_are_remembered_are_bounded() -> None:
    two = End(2, MemoryHub())
    for number in range(1, 4 * limits.NODES):
        two.traffic._opener.reports.append(sealing.KeyReport(number + 10, number, (KEY.id,)))
        two.traffic._take_reports()
    assert len(two.traffic.peer_keys) == 2 * limits.NODES


def test_who_does_not_seal_is_complained_about_now_and_then() -> None:
    hub = MemoryHub()
    stranger, two = hub.transport(), End(2, hub)
    for counter in range(1, 100):
        datagram = clear_prefix(cluster_hash("c"), 1, 11) + counter.to_bytes(8, "little") + bytes(40)
        stranger.multicast(datagram, len(datagram))
        assert two.got() == []
    assert two.complaints == [(sealing.UNSEALED, stranger.address)]
    assert two.traffic.counters[sealing.UNSEALED] == 99


@pytest.mark.parametrize("mtu", [1280, 1500, 9000])
def test_full_buffers_have_room_for_their_tags(mtu: int) -> None:
    """A buffer with small messages behind its packets still is one send of the kernel when it is sealed."""
    size = mtu - 28 - 76
    count = packets_per_buffer(size)
    one = End(1, MemoryHub())
    one.outbox.multicast_data(Extent(1, count, size, bytes(size * count)))
    while len(one.outbox.effects) == 1:
        one.outbox.multicast(b"\x02" + bytes(size - 1))
    first = one.outbox.effects[0]
    assert isinstance(first, Multicast)
    sealed = one.traffic._sealer.seal(first.buffer, first.segment)
    assert len(sealed) <= limits.DATAGRAM_BYTES
    assert first.segment + SEAL_BYTES <= mtu - 28
    assert -(-len(first.buffer) // first.segment) <= SEGMENT_COUNT


# --- several networks
# ---------------------------------------------------------------------------------------------------


def two_networks() -> tuple[End, End]:
    hubs = MemoryHub(), MemoryHub()
    return End(1, *hubs), End(2, *hubs)


def test_second_copies_are_dropped_without_opening_them(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = two_networks()
    one.multicast(b"\x06first")
    two.got()
    opened: list[int] = []
    inner: Callable[[bytes, int], list[tuple[bytes, int]]] = two.traffic._opener.open
    monkeypatch.setattr(two.traffic, "_opener", Counting(inner, opened, two.traffic._opener))
    sent = [one.multicast(b"\x06%d" % number) for number in range(20)]
    assert two.got() == sent
    assert 20 <= len(opened) <= 23, "the copies were opened, too"
    assert two.traffic.counters == dict.fromkeys(sealing.OUTCOMES, 0)


class Counting:
    def __init__(
        self, inner: Callable[..., list[tuple[bytes, int]]], opened: list[int], opener: object
    ) -> None:
        self._inner, self._opened, self._opener = inner, opened, opener

    def open(self, buffer: bytes, segment: int) -> list[tuple[bytes, int]]:
        self._opened.append(segment)
        return self._inner(buffer, segment)

    def __getattr__(self, name: str) -> object:
        return getattr(self._opener, name)


def test_a_forged_copy_does_not_take_the_place_of_a_real_datagram() -> None:
    one, two = two_networks()
    one.multicast(b"\x06first")
    two.got()
    forger = two.transports[1]._hub.transport()
    for counter in range(2, 10):  # what node 1 sends next
        header = one.prefix[:3] + bytes([1 | KEY.hint << 2]) + one.prefix[4:] + counter.to_bytes(8, "little")
        forger.multicast(header + bytes(60), 92)
    assert two.got() == []
    sent = [one.multicast(b"\x06%d" % number) for number in range(5)]
    assert two.got() == sent


def test_a_replayed_datagram_does_not_lead_what_is_sent_to_its_sender_elsewhere() -> None:
    one, two = two_networks()
    other = one.transports[1]._hub.transport()  # so that addresses of the two networks differ
    tap = one.transports[1]._hub.transport()
    one.multicast(b"\x06first")
    two.got()
    before = [link.address for link in two.transport.links()]  # type: ignore[union-attr]
    assert tap.address not in before
    buffer, segment, _ = tap.receive(64)[0]
    tap.multicast(buffer, segment)
    assert two.got() == []
    time.sleep(limits.HEARTBEAT_NS / 1e9 + 0.01)  # from now on it is opened
    tap.multicast(buffer, segment)
    assert two.got() == []
    assert two.traffic.counters == dict.fromkeys(sealing.OUTCOMES, 0)
    assert [link.address for link in two.transport.links()] == before  # type: ignore[union-attr]
    other.close()


def test_reports_pass_on_both_networks_and_count_once() -> None:
    one, two = two_networks()
    one.multicast(b"\x06first")
    two.got()
    assert two.traffic.peer_keys[(1, 11)].key_ids == (KEY.id,)
    assert two.traffic.counters == dict.fromkeys(sealing.OUTCOMES, 0)
