"""The network between nodes: per directed link delay, reordering, loss, duplication, cuts; GSO buffers taken apart.

A buffer of several datagrams may arrive whole (GRO put it together again), in parts, or one by one, and any of its
datagrams may be missing: GRO joins what arrives one after the other, whatever was lost between.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING, Final

from ocfcluster.limits import MILLISECOND_NS
from ocfcluster.protocol.effects import Address

if TYPE_CHECKING:
    from ocfcluster.simulator.world import World

PORT: Final = 5405
MICROSECOND_NS: Final = 1000

Drop = Callable[[int, int, bytes], bool]  # (from, to, datagram) → lost


def address_of(node_id: int) -> Address:
    return (f"10.0.0.{node_id}", PORT)


@dataclass(slots=True, frozen=True)
class LinkProfile:
    """One directed link. Probabilities are per datagram."""

    delay_ns: int = 50 * MICROSECOND_NS
    jitter_ns: int = 30 * MICROSECOND_NS
    loss: float = 0.0
    duplication: float = 0.0
    duplicate_delay_ns: int = 5 * MILLISECOND_NS
    reorder: float = 0.0
    reorder_delay_ns: int = 3 * MILLISECOND_NS
    splitting: float = 0.3  # probability that a GSO buffer does not arrive whole although nothing is lost
    garbage: float = 0.0  # probability that a damaged copy arrives as well

    def calm(self) -> LinkProfile:
        """The same link without faults."""
        return replace(self, loss=0.0, duplication=0.0, reorder=0.0, garbage=0.0)


class Link:
    """One direction between two nodes."""

    __slots__ = ("cut", "last_arrival", "profile")

    def __init__(self, profile: LinkProfile) -> None:
        self.profile = profile
        self.cut = 0  # by how many faults
        self.last_arrival = 0


class Network:
    """Carries datagrams between hosts. ``drop`` rules (scenarios) look at each datagram before chance does."""

    __slots__ = ("_random", "_world", "drops", "echo", "faults", "links", "node_ids", "replays")

    def __init__(self, world: World, random: Random) -> None:
        self._world = world
        self._random = random
        self.node_ids: list[int] = []
        self.echo = False  # a sender hears its own multicasts, as with IP_MULTICAST_LOOP
        self.links: dict[tuple[int, int], Link] = {}
        self.drops: list[Drop] = []
        self.faults: Counter[str] = Counter()
        self.replays: dict[int, int] = {}  # node → datagrams it got more than once

    def plug_in(self, node_id: int, profile: LinkProfile) -> None:
        """Links a machine with all there are, both ways, alike; change ``links`` for more."""
        for other in self.node_ids:
            self.links[other, node_id] = Link(profile)
            self.links[node_id, other] = Link(profile)
        self.node_ids.append(node_id)

    def multicast(self, source: int, buffer: bytes, segment: int) -> None:
        for destination in self.node_ids:
            if destination != source:
                self.send(source, destination, buffer, segment)
            elif self.echo:
                self._arrive(source, source, buffer, segment)

    def send_to_address(self, source: int, address: Address, buffer: bytes, segment: int) -> None:
        destination = self.at_address(address)
        if destination is None:
            self.faults["unknown address"] += 1
        elif destination != source:
            self.send(source, destination, buffer, segment)

    def at_address(self, address: Address) -> int | None:
        """The machine that has this address."""
        for node_id in self.node_ids:
            if address_of(node_id) == address:
                return node_id
        return None

    def joins(self, one: int, other: int) -> bool:
        """Whether a stream between the two moves: both directions are there."""
        return not self.links[one, other].cut and not self.links[other, one].cut

    def round_trip_ns(self, one: int, other: int) -> int:
        return self.links[one, other].profile.delay_ns + self.links[other, one].profile.delay_ns

    def send(self, source: int, destination: int, buffer: bytes, segment: int) -> None:
        """One buffer over one link."""
        link = self.links[source, destination]
        if link.cut:
            self.faults["cut"] += 1
            return
        profile = link.profile
        size = len(buffer)
        chance = self._random.random
        if size <= segment:
            lost = self._dropped(source, destination, buffer) or (profile.loss and chance() < profile.loss)
            if lost:
                self.faults["loss"] += 1
            else:
                self._deliver(link, source, destination, buffer, segment)
        else:
            self._send_segments(link, source, destination, buffer, segment)
        if profile.garbage and chance() < profile.garbage:
            self._damage(source, destination, buffer[: min(segment, size)])

    def cut(self, sources: Collection[int], destinations: Collection[int], cut: bool = True) -> None:
        """Cuts (or heals) the links from ``sources`` to ``destinations``, this direction only.

        Cuts add up: a link that two faults have cut works again when both are healed.
        """
        for (source, destination), link in self.links.items():
            if source in sources and destination in destinations:
                link.cut = link.cut + 1 if cut else max(0, link.cut - 1)

    def calm(self) -> None:
        """Ends all faults of all links; distances stay."""
        self.drops.clear()
        for link in self.links.values():
            link.cut = 0
            link.profile = link.profile.calm()

    def late(self, source: int, destination: int, datagram: bytes, delay_ns: int) -> None:
        """A datagram that took so much longer arrives."""
        self._world.after(delay_ns, self._arrive, source, destination, datagram, len(datagram))

    def _dropped(self, source: int, destination: int, datagram: bytes) -> bool:
        return any(rule(source, destination, datagram) for rule in self.drops)

    def _send_segments(self, link: Link, source: int, destination: int, buffer: bytes, segment: int) -> None:
        profile = link.profile
        chance = self._random.random
        offsets = range(0, len(buffer), segment)
        kept = [
            offset
            for offset in offsets
            if not self._dropped(source, destination, buffer[offset : offset + segment])
            and not (profile.loss and chance() < profile.loss)
        ]
        self.faults["loss"] += len(offsets) - len(kept)
        if len(kept) == len(offsets) and chance() >= profile.splitting:
            self._deliver(link, source, destination, buffer, segment)
            return
        while kept:
            count = self._random.choice((1, 1, 2, 3, len(kept)))
            part, kept = kept[:count], kept[count:]
            pieces = b"".join([buffer[offset : offset + segment] for offset in part])
            self._deliver(link, source, destination, pieces, min(segment, len(pieces)))
        self.faults["split"] += 1

    def _deliver(self, link: Link, source: int, destination: int, buffer: bytes, segment: int) -> None:
        profile = link.profile
        random = self._random
        arrival = self._world.now + profile.delay_ns + int(random.random() * profile.jitter_ns)
        if profile.reorder and random.random() < profile.reorder:
            self.faults["reorder"] += 1
            arrival += int(random.random() * profile.reorder_delay_ns)
        else:
            arrival = max(arrival, link.last_arrival)
            link.last_arrival = arrival
        self._world.at(arrival, self._arrive, source, destination, buffer, segment)
        if profile.duplication and random.random() < profile.duplication:
            self.faults["duplication"] += 1
            again = arrival + int(random.random() * profile.duplicate_delay_ns)
            self._world.at(again, self._arrive, source, destination, buffer, segment)
            self.replays[destination] = self.replays.get(destination, 0) + 1

    def _damage(self, source: int, destination: int, datagram: bytes) -> None:
        """A datagram that no honest node sent.

        Only damage that a checksum of UDP or the header would show: without sealing a well-formed lie is believed.
        """
        random = self._random
        self.faults["garbage"] += 1
        how = random.randrange(4)
        if how == 0:
            damaged = random.randbytes(random.randrange(0, 200))
        elif how == 1:
            damaged = datagram[: random.randrange(0, min(len(datagram), 32))]
        elif how == 2:
            position = random.randrange(0, 4)
            flipped = bytearray(datagram)
            if position < len(flipped):
                flipped[position] ^= 1 << random.randrange(8)
            damaged = bytes(flipped)
        else:
            damaged = b""
        delay_ns = random.randrange(MILLISECOND_NS)
        self._world.after(delay_ns, self._arrive, source, destination, damaged, max(len(damaged), 1))

    def _arrive(self, source: int, destination: int, buffer: bytes, segment: int) -> None:
        self._world.hosts[destination].receive(buffer, segment, address_of(source))
