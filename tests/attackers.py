"""Programs that do harm, for tests and for ``bench.attacks``: one process each, for a given time, against addresses and
sockets that the caller has made.

    python -m tests.attackers KIND --seconds S (--socket PATH | --group G --port P --interface ADDRESS [--cluster NAME])

Each prints "ready" when it begins, and at its end one JSON object: what it did, and what it met.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import resource
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from itertools import repeat
from typing import Final

from ocfcluster.limits import CLIENTS
from ocfcluster.wire import datagram as wire
from ocfcluster.wire.frames import (
    CONTROL_HEADER,
    Body,
    Hello,
    OpenProducer,
    Producer,
    Request,
    Subscribe,
    Topic,
    TopicResolve,
    control_frame,
    read_body,
)
from ocfcluster.wire.run import RunKind, build_run

UDP_SEGMENT: Final = 103
SEGMENT_BYTES: Final = 200
SEGMENTS: Final = 64
BUFFER_BYTES: Final = 65_000  # of one segmented send
KEPT: Final = 500  # datagrams that are sent back
TOPIC: Final = "attacked"  # of the honest
FLOODED: Final = "flooded"
Counts = dict[str, int]


# --- on the network: without the key ----------------------------------------------------------------------------------


class Wire:
    """A sender to the cluster's group and port, that also hears it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.to = (options.group, options.port)
        interface = socket.inet_aton(options.interface)
        self.sending = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sending.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, interface)
        self.hearing = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.hearing.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.hearing.bind(self.to)
        self.hearing.setsockopt(
            socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(options.group) + interface
        )
        self.hearing.setblocking(False)

    def heard(self) -> bytes | None:
        with contextlib.suppress(BlockingIOError):
            return self.hearing.recv(65_536)
        return None

    def flood(self, buffer: bytes, segment: int) -> int:
        """Datagrams of ``segment`` bytes by one system call: how many."""
        try:
            self.sending.sendmsg(
                [buffer], [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("<H", segment))], 0, self.to
            )
        except BlockingIOError:
            return 0
        return -(-len(buffer) // segment)


def until(options: argparse.Namespace) -> Iterator[int]:
    """Counts on, at full speed, until the time is up."""
    end, number = time.monotonic() + options.seconds, 0
    while time.monotonic() < end:
        yield number
        number += 1


def flood_noise(options: argparse.Namespace) -> Counts:
    """Random bytes."""
    wires, chance = Wire(options), random.Random(1)
    buffers = [chance.randbytes(SEGMENT_BYTES * SEGMENTS) for _ in range(16)]
    return {"sent": sum(wires.flood(buffers[number % 16], SEGMENT_BYTES) for number in until(options))}


def flood_foreign(options: argparse.Namespace) -> Counts:
    """Good datagrams of another cluster, which uses the same group and port by mistake."""
    return _flood_clear(options, options.cluster + "-other")


def flood_clear(options: argparse.Namespace) -> Counts:
    """Good datagrams of this cluster but for the seal: of its nodes, in the clear."""
    return _flood_clear(options, options.cluster)


def _flood_clear(options: argparse.Namespace, cluster: str) -> Counts:
    wires, sent = Wire(options), 0
    body = wire.encode_ack(0, 1, 5).ljust(SEGMENT_BYTES - wire.BODY, b"\0")
    for number in until(options):
        prefix = wire.clear_prefix(wire.cluster_hash(cluster), 1 + number % 3, 1000, 0)
        first = 1 + number * SEGMENTS
        buffer = b"".join(
            prefix + counter.to_bytes(8, "little") + body for counter in range(first, first + SEGMENTS)
        )
        sent += wires.flood(buffer, SEGMENT_BYTES)
    return {"sent": sent}


def send_back(options: argparse.Namespace) -> Counts:
    """What is heard, in any order: as it was, cut, with a bit changed, of another node, as the next, in the clear."""
    wires, chance, kept, sent = Wire(options), random.Random(1), [], 0
    for _ in until(options):
        while (one := wires.heard()) is not None:
            if len(one) > 48:
                kept = [one, *kept[: KEPT - 1]]
            if len(kept) < KEPT or chance.random() < 0.02:
                break
        if not kept:
            time.sleep(0.001)
            continue
        one = chance.choice(kept)
        count = min(SEGMENTS, BUFFER_BYTES // len(one))
        sent += wires.flood(b"".join([_changed(one, chance) for _ in range(count)]), len(one))
        with contextlib.suppress(BlockingIOError):
            wires.sending.sendto(one[: chance.randrange(1, len(one))], wires.to)
            sent += 1
    return {"sent": sent}


def _changed(one: bytes, chance: random.Random) -> bytes:
    how = chance.randrange(6)
    if how == 1:
        at = chance.randrange(len(one))
        return one[:at] + bytes([one[at] ^ 1 << chance.randrange(8)]) + one[at + 1 :]
    if how in (2, 3):
        counter = struct.unpack_from("<Q", one, 24)[0] + chance.randrange(1, 100_000)
        return one[:24] + struct.pack("<Q", counter) + one[32:]
    if how == 4:
        return one[:8] + struct.pack("<I", chance.randrange(1, 4)) + one[12:]
    if how == 5:
        return one[:3] + b"\0" + one[4:]
    return one


# --- on a node: programs that may connect -----------------------------------------------------------------------------


def dial(options: argparse.Namespace) -> socket.socket:
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connected.connect(options.socket)
    return connected


def greeted(options: argparse.Namespace) -> socket.socket:
    connected = dial(options)
    connected.sendall(control_frame(Request.HELLO, 1, Hello(name="attacker")))
    connected.recv(65_536)
    return connected


def crowd(options: argparse.Namespace) -> Counts:
    """More connections than an agent takes, of which half say nothing, and half begin with half a HELLO."""
    hello = control_frame(Request.HELLO, 1, Hello(name="attacker"))
    held, refused = [], 0
    for number in range(CLIENTS + 100):
        connected = dial(options)
        if number % 2:
            with contextlib.suppress(OSError):
                connected.sendall(hello[: number % len(hello)])
        held.append(connected)
    end = time.monotonic() + options.seconds
    while time.monotonic() < end:
        time.sleep(0.05)
    for connected in held:
        connected.setblocking(False)
        with contextlib.suppress(OSError):
            refused += b"limits.clients" in connected.recv(4096)
    return {"connected": len(held), "refused": refused}


def come_and_go(options: argparse.Namespace) -> Counts:
    """Connects and goes away at once, again and again."""
    done = 0
    for number in until(options):
        with contextlib.suppress(OSError), dial(options) as connected:
            if number % 2:
                connected.sendall(b"\x20")
            done += 1
    return {"connections": done}


def flood_requests(options: argparse.Namespace) -> Counts:
    """Requests as fast as the agent takes them, and no answer is read; from the start when it hangs up."""
    frames = b"".join(
        control_frame(Request.TOPIC_RESOLVE, 2 + number, TopicResolve(f"topic {number}"))
        for number in range(100)
    ) + b"".join(control_frame(Request.STATUS, 200 + number) for number in range(20))
    return _flood_stream(options, lambda _: repeat(frames))


def flood_publications(options: argparse.Namespace) -> Counts:
    """Publications as fast as the agent takes them, and no receipt is read."""

    def prepare(connected: socket.socket) -> Iterator[bytes]:
        opened = ask(connected, Request.OPEN_PRODUCER, OpenProducer(False))
        topic = ask(connected, Request.TOPIC_RESOLVE, TopicResolve(FLOODED))
        assert isinstance(opened, Producer)
        assert isinstance(topic, Topic)
        for first in range(1, 1 << 40, 50):
            run = build_run(RunKind.PUBLICATION, topic.topic_id, opened.producer, first, [b"x" * 200] * 50)
            yield CONTROL_HEADER.pack(len(run), Request.PUBLISH, 0, 0, 0) + run

    return _flood_stream(options, prepare)


def ask(connected: socket.socket, kind: Request, body: Body) -> Body | None:
    connected.sendall(control_frame(kind, 2, body))
    answer = connected.recv(65_536)
    return read_body(CONTROL_HEADER.unpack_from(answer)[1], answer[CONTROL_HEADER.size :])


def _flood_stream(options: argparse.Namespace, prepare: Callable[[socket.socket], Iterator[bytes]]) -> Counts:
    sent = connections = 0
    connected: socket.socket | None = None
    frames: Iterator[bytes] = repeat(b"")
    for _ in until(options):
        try:
            if connected is None:
                connected = greeted(options)
                connections += 1
                frames = prepare(connected)
                connected.settimeout(0.2)
            frame = next(frames)
            connected.sendall(frame)
            sent += len(frame)
        except TimeoutError:  # half a frame may have gone: what follows would be garbage
            connected = _hang_up(connected)
        except OSError:
            connected = _hang_up(connected)
            time.sleep(0.001)
    _hang_up(connected)
    return {"bytes": sent, "connections": connections}


def _hang_up(connected: socket.socket | None) -> None:
    if connected is not None:
        connected.close()


def open_and_close(options: argparse.Namespace) -> Counts:
    """Subscriptions opened and let go without a word, many at a time."""
    done = 0
    for _ in until(options):
        with contextlib.suppress(OSError), greeted(options) as connected:
            ends = []
            for number in range(40):
                own, lent = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                ends += [own, lent]
                frame = control_frame(Request.SUBSCRIBE, 2 + number, Subscribe(number + 1, [TOPIC], False))
                socket.send_fds(connected, [frame], [lent.fileno()])
                done += 1
            select.select([connected], [], [], 0.1)
            for end in ends:
                end.close()
    return {"subscriptions": done}


def read_nothing(options: argparse.Namespace) -> Counts:
    """Subscribed, 8 times, and takes neither an event nor an answer."""
    held: list[socket.socket] = [greeted(options)]
    for number in range(8):
        own, lent = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        held += [own, lent]
        frame = control_frame(Request.SUBSCRIBE, 2 + number, Subscribe(number + 1, [TOPIC], False))
        socket.send_fds(held[0], [frame], [lent.fileno()])
    time.sleep(options.seconds)
    return {"subscriptions": 8}


Attack = Callable[[argparse.Namespace], Counts]
ON_THE_NETWORK: Final[dict[str, Attack]] = {
    "noise": flood_noise, "foreign": flood_foreign, "clear": flood_clear, "send-back": send_back,
}  # fmt: skip
ON_A_NODE: Final[dict[str, Attack]] = {
    "crowd": crowd, "come-and-go": come_and_go, "requests": flood_requests, "publications": flood_publications,
    "subscriptions": open_and_close, "deaf": read_nothing,
}  # fmt: skip
KINDS: Final = {**ON_THE_NETWORK, **ON_A_NODE}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--socket", default="")
    parser.add_argument("--group", default="")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--interface", default="")
    parser.add_argument("--cluster", default="")
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print("ready", flush=True)
    print(json.dumps(KINDS[options.kind](options)), flush=True)


if __name__ == "__main__":
    main()
