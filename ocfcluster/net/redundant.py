"""Several networks as one transport: every buffer goes out on each of them, and the first copy of a datagram counts.

A datagram is known again by what its clear header says anyway: the sender's incarnation and its counter
(``wire.datagram``). Copies are dropped here, from the header alone, before anything is made of them; the node behind
never sees one, and knows nothing of networks.

What is sent to one node goes out on every network on which that node was heard, so a cut costs no pause at all: nobody
has to notice it first. An address that the node knows stands for all addresses of the incarnation that used it.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from ocfcluster import limits
from ocfcluster.limits import CLEAR_HEADER_BYTES
from ocfcluster.net.transport import Address, Received, Transport, datagram_count
from ocfcluster.wire.datagram import CLEAR, INCARNATION_AT, OLDEST_VERSION, PREFIX_BYTES, VERSION, VERSION_AT
from ocfcluster.wire.replay import ReplayWindow
from ocfcluster.wire.sealing import FLAGS_AT, REPORT

SENDERS: Final = 2 * limits.NODES  # incarnations remembered; the longest silent go first
OURS_BYTES: Final = 8  # of the clear header: magic, version, flags and cluster
_COUNTER: Final = struct.Struct("<Q")


class Link(NamedTuple):
    """What was heard of one incarnation of another node on one network."""

    node_id: int
    incarnation: int
    network: str
    address: Address  # where it sends from there
    heard_at: int  # monotonic ns, of its last datagram


@lru_cache(maxsize=512)
def _heads(segment: int, count: int) -> struct.Struct:
    """Prefix and counter of each of ``count`` datagrams of ``segment`` bytes."""
    return struct.Struct("<" + f"{PREFIX_BYTES}sQ{segment - CLEAR_HEADER_BYTES}x" * count)


class Absent:
    """A ``Transport`` for a network that cannot be opened: nothing goes out, and nothing comes. ``error`` says why."""

    __slots__ = (
        "address",
        "counters",
        "error",
        "ip_overhead_bytes",
        "mtu",
        "receive_buffer_bytes",
        "warnings",
    )

    def __init__(self, error: str) -> None:
        self.error = error
        self.address: Address = ("", 0)
        self.mtu = limits.MTU_MAXIMUM
        self.ip_overhead_bytes = 0
        self.receive_buffer_bytes = limits.RECEIVE_BUFFER_BYTES
        self.warnings: list[str] = []
        self.counters: dict[str, int] = {}

    def filenos(self) -> list[int]:
        return []

    def receive(self, limit: int) -> list[Received]:
        return []

    def multicast(self, buffer: bytes, segment: int) -> None: ...

    def send(self, address: Address, buffer: bytes, segment: int) -> None: ...

    def close(self) -> None: ...


class _Sender:
    """One incarnation of another node: what was taken of it, and where and when it was heard, per network."""

    __slots__ = ("node_id", "incarnation", "window", "addresses", "heard_at")

    def __init__(self, node_id: int, incarnation: int, networks: int) -> None:
        self.node_id = node_id
        self.incarnation = incarnation
        self.window = ReplayWindow()
        self.addresses: list[Address | None] = [None] * networks
        self.heard_at = [0] * networks


class DuplicateFilter:
    """Lets the first copy of every datagram pass, from whichever of ``networks`` it comes.

    ``ours``: the first OURS_BYTES of this cluster's datagrams, in any version. What begins otherwise passes unseen: it
    is for the node to count. So does what is too short to have a header. Bounded: SENDERS windows of some 20 KiB.

    ``open``: gives what is left of a received buffer when it is unsealed; None: nothing is sealed. Then a datagram
    has to open before it is taken for a first copy or its sender has an address; copies are dropped without opening
    them. While nothing is sealed a forged datagram can take the place of a real one here, as it can in the node
    itself.
    """

    __slots__ = ("dropped", "open", "_moved", "_networks", "_ours", "_senders")

    def __init__(self, ours: bytes, networks: int, moved: Callable[[_Sender], None] | None = None) -> None:
        self.dropped = 0  # datagrams that had come before
        self.open: Callable[[Received], list[Received]] | None = None
        # In whichever version the cluster speaks: it may be older than the newest that this build knows.
        versions = range(OLDEST_VERSION, VERSION + 1)
        self._ours = frozenset(
            ours[:VERSION_AT] + bytes([version]) + ours[VERSION_AT + 1 :] for version in versions
        )
        self._networks = networks
        self._moved = moved  # told of a sender whose addresses have changed, or that is forgotten
        self._senders: dict[bytes, _Sender] = {}  # by incarnation as the header has it

    def admit(self, received: Received, network: int, now: int, into: list[Received]) -> None:
        """Append to ``into`` what of a received buffer has not come before: all, nothing, or pieces of it."""
        if self.open is None:
            self._admit(received, network, now, into)
        elif not self._is_sealed_copy(received, network, now):
            for piece in self.open(received):
                self._admit(piece, network, now, into)

    def _is_sealed_copy(self, received: Received, network: int, now: int) -> bool:
        """Whether all of a sealed buffer has come before, by its headers alone. Who made it is not known then, so
        nothing is learned from it; once per heartbeat a copy is opened all the same, to show that its network works."""
        buffer, segment, _ = received
        if len(buffer) < CLEAR_HEADER_BYTES or segment < CLEAR_HEADER_BYTES or buffer[FLAGS_AT] & REPORT:
            return False
        sender = self._senders.get(buffer[INCARNATION_AT:PREFIX_BYTES])
        if sender is None or now - sender.heard_at[network] >= limits.HEARTBEAT_NS:
            return False
        counters = _counters(buffer, min(segment, len(buffer)))
        if counters is None or not sender.window.taken(counters[0], len(counters)):
            return False
        if counters[-1] - counters[0] + 1 != len(counters):
            return False
        self.dropped += len(counters)
        return True

    def _admit(self, received: Received, network: int, now: int, into: list[Received]) -> None:
        buffer, segment, source = received
        length = len(buffer)
        if (
            length < CLEAR_HEADER_BYTES
            or segment < CLEAR_HEADER_BYTES
            or buffer[:OURS_BYTES] not in self._ours
        ):
            into.append(received)
            return
        sender = self._senders.get(buffer[INCARNATION_AT:PREFIX_BYTES])
        if sender is None:
            sender = self._meet(buffer)
        if sender.addresses[network] != source and self._may_move(sender, received, network, now):
            self._move(sender, network, source)
        sender.heard_at[network] = now
        window = sender.window
        if length <= segment:
            if window.accept(_COUNTER.unpack_from(buffer, PREFIX_BYTES)[0]):
                into.append(received)
            else:
                self.dropped += 1
            return
        counters = _counters(buffer, segment)
        if counters is None:  # of several senders, or with an end that is no datagram
            for at in range(0, length, segment):
                one = buffer[at : at + segment]
                self._admit((one, len(one), source), network, now, into)
            return
        first, count = counters[0], len(counters)
        if counters == tuple(range(first, first + count)):
            if window.accept(first, count):
                into.append(received)
                return
            if window.taken(first, count):
                self.dropped += count
                return
        self._pieces(received, counters, window, into)

    def _pieces(
        self, received: Received, counters: Sequence[int], window: ReplayWindow, into: list[Received]
    ) -> None:
        """Some of the buffer's datagrams have come: the others, neighbours together."""
        buffer, segment, source = received
        begin = -1  # of the piece at hand
        for place, counter in enumerate((*counters, 0)):
            new = place < len(counters) and window.accept(counter)
            if new and begin < 0:
                begin = place
            elif not new:
                self.dropped += place < len(counters)
                if begin >= 0:
                    piece = buffer[begin * segment : place * segment]
                    into.append((piece, min(segment, len(piece)), source))
                    begin = -1

    def _meet(self, buffer: bytes) -> _Sender:
        if len(self._senders) >= SENDERS:
            key = min(self._senders, key=lambda key: max(self._senders[key].heard_at))
            forgotten = self._senders.pop(key)
            forgotten.addresses = [None] * self._networks
            if self._moved is not None:
                self._moved(forgotten)
        fields = CLEAR.unpack_from(buffer)
        sender = _Sender(fields[4], fields[6], self._networks)
        self._senders[buffer[INCARNATION_AT:PREFIX_BYTES]] = sender
        return sender

    def _may_move(self, sender: _Sender, received: Received, network: int, now: int) -> bool:
        """Sealed datagrams that somebody sends again open as well, wherever they come from: a copy does not take the
        place of an address that is in use."""
        if self.open is None or now - sender.heard_at[network] >= limits.SECOND_NS:
            return True
        buffer, segment, _ = received
        counters = _counters(buffer, min(segment, len(buffer)))
        return counters is not None and not sender.window.taken(counters[0], len(counters))

    def _move(self, sender: _Sender, network: int, source: Address) -> None:
        if source in sender.addresses:
            return  # two networks that are one: its datagrams come from both of its addresses on each
        sender.addresses[network] = source
        if self._moved is not None:
            self._moved(sender)

    def senders(self) -> list[_Sender]:
        return list(self._senders.values())


def _counters(buffer: bytes, segment: int) -> tuple[int, ...] | None:
    """The counters of a buffer's datagrams; None where they are not all of one sender, or not all datagrams."""
    full, rest = divmod(len(buffer), segment)
    if full > limits.SEGMENT_COUNT or 0 < rest < CLEAR_HEADER_BYTES:
        return None
    fields = _heads(segment, full).unpack_from(buffer)
    prefix = fields[0]
    if fields[0::2].count(prefix) != full:
        return None
    counters: tuple[int, ...] = fields[1::2]
    if not rest:
        return counters
    last = full * segment
    if buffer[last : last + PREFIX_BYTES] != prefix:
        return None
    return (*counters, _COUNTER.unpack_from(buffer, last + PREFIX_BYTES)[0])


_Routes = list[
    tuple[Callable[[Address, bytes, int], None], Address]
]  # how to send, and where to, per network


class RedundantTransport:
    """A ``Transport`` over several others, one per network; they are its own from here on.

    ``networks``  their names, each with its transport, which may be Absent at first (``attach``); the ``address`` of
                  the first one that is there is this node's to the outside
    ``ours``      see DuplicateFilter

    ``mtu`` is the smallest, so that the same packet passes on each. ``counters`` are the sums of all, with
    ``duplicates_dropped``.
    """

    __slots__ = (
        "_filter",
        "_known",
        "_multicasts",
        "_names",
        "_routes",
        "_turn",
        "ip_overhead_bytes",
        "mtu",
        "receive_buffer_bytes",
        "transports",
        "warnings",
    )

    def __init__(self, networks: Sequence[tuple[str, Transport]], ours: bytes) -> None:
        self._names = [name for name, _ in networks]
        self.transports = [transport for _, transport in networks]
        self.mtu = min(one.mtu for one in self.transports)
        self.ip_overhead_bytes = max(one.ip_overhead_bytes for one in self.transports)
        self.receive_buffer_bytes = min(one.receive_buffer_bytes for one in self.transports)
        self.warnings = [warning for one in self.transports for warning in one.warnings]
        self._multicasts = [one.multicast for one in self.transports]
        self._filter = DuplicateFilter(ours, len(self.transports), self._moved)
        self._routes: dict[Address, _Routes] = {}  # of the incarnation that used the address last
        self._known: dict[tuple[int, int], _Routes] = {}  # of each incarnation
        self._turn = 0  # the network that is read first

    def open_with(self, open_: Callable[[Received], list[Received]]) -> None:
        """What comes is sealed, and to be opened before it counts (see DuplicateFilter)."""
        self._filter.open = open_

    @property
    def address(self) -> Address:
        return next(
            (one for one in self.transports if not isinstance(one, Absent)), self.transports[0]
        ).address

    def absent(self) -> dict[int, Absent]:
        """The networks that are not there, by their number."""
        return {number: one for number, one in enumerate(self.transports) if isinstance(one, Absent)}

    def attach(self, network: int, transport: Transport) -> None:
        """A network that was absent is there. Packets stay as large as they are: what does not pass it, the others
        carry."""
        if not isinstance(self.transports[network], Absent):
            raise RuntimeError(f"network {self._names[network]!r} is there already")
        self.transports[network] = transport
        self._multicasts[network] = transport.multicast

    @property
    def counters(self) -> dict[str, int]:
        total = {"duplicates_dropped": self._filter.dropped}
        for one in self.transports:
            for name, times in one.counters.items():
                total[name] = total.get(name, 0) + times
        return total

    def filenos(self) -> list[int]:
        return [fileno for one in self.transports for fileno in one.filenos()]

    def receive(self, limit: int) -> list[Received]:
        """As of any transport; at most the same share of each network, and of each datagram the first copy alone."""
        taken: list[Received] = []
        transports = self.transports
        share = max(1, limit // len(transports))
        now = 0
        self._turn = turn = (self._turn + 1) % len(transports)
        for place in range(len(transports)):
            network = (turn + place) % len(transports)
            received = transports[network].receive(share)
            if received:
                now = now or time.monotonic_ns()
                admit = self._filter.admit
                for one in received:
                    admit(one, network, now, taken)
        return taken

    def multicast(self, buffer: bytes, segment: int) -> None:
        for multicast in self._multicasts:
            multicast(buffer, segment)

    def send(self, address: Address, buffer: bytes, segment: int) -> None:
        """To the incarnation that used ``address`` last, on every network on which it was heard."""
        routes = self._routes.get(address)
        if routes is not None:
            for send, to in routes:
                send(to, buffer, segment)
            return
        datagram_count(len(buffer), segment)
        for (
            one
        ) in self.transports:  # nobody that was heard: the kernel knows by which it can be reached, if at all
            if len(one.address) == len(address):
                one.send(address, buffer, segment)

    def close(self) -> None:
        for one in self.transports:
            one.close()

    def names(self) -> list[str]:
        return list(self._names)

    def links(self) -> list[Link]:
        """What was heard of every incarnation on every network, by node_id; none where it never was."""
        found = [
            Link(sender.node_id, sender.incarnation, self._names[network], address, sender.heard_at[network])
            for sender in self._filter.senders()
            for network, address in enumerate(sender.addresses)
            if address is not None
        ]
        return sorted(
            found, key=lambda link: (link.node_id, link.incarnation, self._names.index(link.network))
        )

    def paths(self, address: Address) -> list[tuple[Address, Address]]:
        """(own address, address of the other node) on each network on which the incarnation that used ``address``
        was heard, the one where it was heard last first."""
        users = [sender for sender in self._filter.senders() if address in sender.addresses]
        if users:
            sender = max(users, key=lambda one: max(one.heard_at))
            heard = sorted(
                (-sender.heard_at[network], network, known)
                for network, known in enumerate(sender.addresses)
                if known is not None
            )
            return [(self.transports[network].address, known) for _, network, known in heard]
        return [(one.address, address) for one in self.transports if len(one.address) == len(address)]

    def _moved(self, sender: _Sender) -> None:
        """A sender has other addresses than before: what is sent to it follows."""
        key = (sender.node_id, sender.incarnation)
        before = self._known.pop(key, [])
        for _, address in before:
            if self._routes.get(address) is before:  # else another incarnation uses it now
                del self._routes[address]
        routes: _Routes = [
            (self.transports[network].send, address)
            for network, address in enumerate(sender.addresses)
            if address is not None
        ]
        if routes:
            self._known[key] = routes
            self._routes.update(dict.fromkeys([address for _, address in routes], routes))
