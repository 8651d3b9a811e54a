"""An Ethernet switch in user space: test equipment that loses, delays, reorders, duplicates and cuts on order.

Every host has one TAP device in its network namespace; this program holds the other ends and carries frames
between them. Multicast and broadcast frames go to all other hosts; a unicast frame goes to the host whose address
is known, else to all. Each *directed* link (from one host to another) has its own impairments, counters and
random numbers: what happens to the n-th impaired frame of a link depends on the seed and n alone.

The TAP devices have no virtual network header, so the kernel cuts segmented sends (UDP_SEGMENT) into single
frames and completes checksums before a frame arrives here: loss and the like act on single frames.

Run as a program it is told its ports on the command line and is controlled by JSON lines on a Unix socket;
``Switch`` starts it and speaks that language. It ends when its standard input ends, so it never outlives its owner.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import heapq
import json
import os
import random
import secrets
import select
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

BURST_FRAMES: Final = 64  # read from one port before the others and the delayed frames get their turn
LINK_QUEUE_BYTES: Final = 32 * 1024 * 1024  # delayed frames of one link; more is dropped and counted
CONTROL_LINE_BYTES: Final = 65_536
ETHERNET_BYTES: Final = 22  # header, with room for a VLAN tag
PORT_QUEUE_FRAMES: Final = 20_000  # frames the kernel keeps in a TAP device until they are read here

_TUNSETIFF: Final = 0x4004_54CA
_IFF_TAP: Final = 0x0002
_IFF_NO_PI: Final = 0x1000
_CLONE_NEWNET: Final = 0x4000_0000
_NS_PER_MS: Final = 1_000_000


@dataclass(slots=True)
class Impairment:
    """What is wrong with one directed link. Probabilities are from 0 to 1, times in milliseconds.

    ``jitter_ms`` is added to ``delay_ms``, uniformly from 0 up, and keeps the order. A share ``reorder`` of the
    frames is held back by ``reorder_ms`` more while later ones pass. ``duplicate`` sends a frame twice.
    """

    loss: float = 0.0
    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    reorder: float = 0.0
    reorder_ms: float = 0.0
    duplicate: float = 0.0
    cut: bool = False

    def check(self) -> None:
        """ValueError names the first field that cannot be."""
        for name in ("loss", "reorder", "duplicate"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is a probability from 0 to 1, not {getattr(self, name)}")
        for name in ("delay_ms", "jitter_ms", "reorder_ms"):
            if getattr(self, name) < 0.0:
                raise ValueError(f"{name} is not negative, not {getattr(self, name)}")
        if not isinstance(self.cut, bool):
            raise ValueError(f"cut is true or false, not {self.cut}")

    @property
    def harmless(self) -> bool:
        return not (
            self.cut or self.loss or self.delay_ms or self.jitter_ms or self.reorder or self.duplicate
        )


IMPAIRMENTS: Final = tuple(field.name for field in fields(Impairment))


@dataclass(slots=True)
class Counters:
    """What became of the frames of one link: frames + cut + lost + overflow + refused = offered + duplicated."""

    offered: int = 0
    frames: int = 0  # written to the receiver
    bytes: int = 0  # likewise
    cut: int = 0
    lost: int = 0
    duplicated: int = 0
    reordered: int = 0
    overflow: int = 0  # dropped: too much delayed already
    refused: int = 0  # the receiver's device would not take it (it is down)


class Link:
    """One directed link. ``offer`` decides about a frame; who calls it puts what comes back in time order."""

    __slots__ = (
        "clean",
        "counters",
        "impairment",
        "last_due_ns",
        "pending",
        "pending_bytes",
        "random",
        "receiver",
        "sender",
        "write_to",
    )

    def __init__(self, sender: int, receiver: int, write_to: int, seed: int) -> None:
        self.sender = sender
        self.receiver = receiver
        self.write_to = write_to
        self.impairment = Impairment()
        self.counters = Counters()
        self.pending = 0
        self.pending_bytes = 0
        self.last_due_ns = 0
        self.clean = True  # nothing to decide and nothing waiting: frames go straight through
        self.seed(seed)

    def seed(self, seed: int) -> None:
        """Start the link's random numbers anew."""
        self.random = random.Random(f"{seed}:{self.sender}>{self.receiver}")

    def set(self, changes: Mapping[str, Any]) -> None:
        """Change the named impairments, keep the others. ValueError leaves the link as it was."""
        values = {name: getattr(self.impairment, name) for name in IMPAIRMENTS}
        for name, value in changes.items():
            if name not in values:
                raise ValueError(f"no impairment {name!r}; there are {', '.join(IMPAIRMENTS)}")
            values[name] = value
        impairment = Impairment(**values)
        impairment.check()
        self.impairment = impairment
        self.settle()

    def settle(self) -> None:
        """Frames may go straight through again once nothing is wrong and nothing older waits."""
        self.clean = self.impairment.harmless and self.pending == 0

    def offer(self, frame_bytes: int, now_ns: int) -> list[int]:
        """Decide about a frame of a link that is not clean: the times it is due at (none: dropped), counted."""
        wrong, counters, draw = self.impairment, self.counters, self.random.random
        counters.offered += 1
        if wrong.cut:
            counters.cut += 1
            return []
        if wrong.loss and draw() < wrong.loss:
            counters.lost += 1
            return []
        due = now_ns + int(wrong.delay_ms * _NS_PER_MS)
        if wrong.jitter_ms:
            due += int(draw() * wrong.jitter_ms * _NS_PER_MS)
        due = max(due, self.last_due_ns)
        if wrong.reorder and draw() < wrong.reorder:
            counters.reordered += 1
            due += int(wrong.reorder_ms * _NS_PER_MS)  # and last_due_ns stays: later frames may pass
        else:
            self.last_due_ns = due
        copies = 1
        if wrong.duplicate and draw() < wrong.duplicate:
            counters.duplicated += 1
            copies = 2
        if self.pending_bytes + copies * frame_bytes > LINK_QUEUE_BYTES:
            counters.overflow += copies
            return []
        return [due] * copies


class Hub:
    """Carries frames between open ports. ``ports`` maps a host's number to a non-blocking descriptor."""

    __slots__ = ("_by_address", "_everywhere", "_frame_bytes", "_heap", "_ports", "_serial", "links")

    def __init__(self, ports: Mapping[int, int], seed: int, frame_bytes: int) -> None:
        self._ports = dict(ports)
        self._frame_bytes = frame_bytes
        self._heap: list[tuple[int, int, Link, bytes]] = []  # due, serial number, link, frame
        self._serial = 0
        self._by_address: dict[int, dict[bytes, tuple[Link, ...]]] = {port: {} for port in ports}
        self.links = {
            (i, j): Link(i, j, descriptor, seed) for i in ports for j, descriptor in ports.items() if i != j
        }
        self._everywhere = {
            port: tuple(link for link in self.links.values() if link.sender == port) for port in ports
        }

    def pump(self, port: int) -> None:
        """Read what ``port`` has, at most a burst, and send it on its ways."""
        read, write, descriptor, size = os.read, os.write, self._ports[port], self._frame_bytes
        known = self._by_address[port]
        everywhere = self._everywhere[port]
        source = b""
        now_ns = time.monotonic_ns()
        for _ in range(BURST_FRAMES):
            try:
                frame = read(descriptor, size)
            except BlockingIOError:
                return
            if frame[6:12] != source:
                source = frame[6:12]
                self._learn(port, source)
            # The table holds unicast addresses only, so multicast and broadcast go everywhere.
            for link in known.get(frame[:6], everywhere):
                if not link.clean:
                    self._carry(link, frame, now_ns)
                    continue
                counters = link.counters
                counters.offered += 1
                try:
                    write(link.write_to, frame)
                except OSError:
                    counters.refused += 1
                else:
                    counters.frames += 1
                    counters.bytes += len(frame)

    def _learn(self, port: int, address: bytes) -> None:
        for sender, table in self._by_address.items():
            if sender != port:
                table[address] = (self.links[sender, port],)

    def _carry(self, link: Link, frame: bytes, now_ns: int) -> None:
        for due in link.offer(len(frame), now_ns):
            if due <= now_ns and not link.pending:
                self._write(link, frame)
                continue
            self._serial += 1
            link.pending += 1
            link.pending_bytes += len(frame)
            heapq.heappush(self._heap, (due, self._serial, link, frame))

    def _write(self, link: Link, frame: bytes) -> None:
        try:
            os.write(link.write_to, frame)
        except OSError:
            link.counters.refused += 1
        else:
            link.counters.frames += 1
            link.counters.bytes += len(frame)

    def release(self) -> float | None:
        """Send the delayed frames that are due; seconds until the next is, or None."""
        heap = self._heap
        while heap:
            due, _, link, frame = heap[0]
            wait_ns = due - time.monotonic_ns()
            if wait_ns > 0:
                return wait_ns / 1e9
            heapq.heappop(heap)
            link.pending -= 1
            link.pending_bytes -= len(frame)
            if link.impairment.cut:  # what is under way when a cable is cut does not arrive
                link.counters.cut += 1
            else:
                self._write(link, frame)
            link.settle()
        return None


@contextlib.contextmanager
def inside(namespace: str) -> Iterator[None]:
    """This thread is in the named network namespace within the block; sockets made there stay there."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _enter_namespace(f"/run/netns/{namespace}")
        try:
            yield
        finally:
            _enter_namespace(f"/proc/self/fd/{home}")
    finally:
        os.close(home)


def open_tap(name: str, namespace: str) -> int:
    """A new TAP device ``name`` in a named network namespace; non-blocking; gone when it is closed."""
    with inside(namespace):
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _enter_namespace(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        libc = ctypes.CDLL(None, use_errno=True)  # os.setns is there from Python 3.12 on
        if libc.setns(descriptor, _CLONE_NEWNET) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), path)
    finally:
        os.close(descriptor)


class Control:
    """The control socket: one JSON object per line in, one per line out."""

    __slots__ = ("_buffers", "_hub", "listener", "stopped")

    def __init__(self, hub: Hub, path: str) -> None:
        self._hub = hub
        self._buffers: dict[socket.socket, bytes] = {}
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(path)
        self.listener.listen(8)
        self.stopped = False

    def connections(self) -> list[socket.socket]:
        return list(self._buffers)

    def accept(self) -> None:
        connection, _ = self.listener.accept()
        connection.settimeout(1.0)
        self._buffers[connection] = b""

    def receive(self, connection: socket.socket) -> None:
        """Answer the whole lines that have come; a connection that ends or talks without end is closed."""
        try:
            data = connection.recv(CONTROL_LINE_BYTES)
            *lines, rest = (self._buffers[connection] + data).split(b"\n")
            for line in lines:
                connection.sendall(json.dumps(self._answer(line)).encode() + b"\n")
            self._buffers[connection] = rest
        except OSError:
            data = b""
        if not data or len(self._buffers[connection]) > CONTROL_LINE_BYTES:
            del self._buffers[connection]
            connection.close()

    def _answer(self, line: bytes) -> dict[str, Any]:
        operations: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "set": self._set,
            "reset": self._reset,
            "seed": self._seed,
            "counters": self._counters,
            "stop": self._stop,
        }
        try:
            request = json.loads(line)
            return {"ok": True, **operations[request.pop("op")](request)}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            return {"ok": False, "error": f"{type(error).__name__}: {error}"}

    def _chosen(self, request: dict[str, Any]) -> list[Link]:
        sender, receiver = request.pop("from", "*"), request.pop("to", "*")
        chosen = [
            link for (i, j), link in self._hub.links.items() if sender in ("*", i) and receiver in ("*", j)
        ]
        if not chosen:
            raise ValueError(f"no link from {sender} to {receiver}")
        return chosen

    def _set(self, request: dict[str, Any]) -> dict[str, Any]:
        for link in self._chosen(request):
            link.set(request)
        return {}

    def _reset(self, request: dict[str, Any]) -> dict[str, Any]:
        for link in self._chosen(request):
            link.set({field.name: field.default for field in fields(Impairment)})
        return {}

    def _seed(self, request: dict[str, Any]) -> dict[str, Any]:
        for link in self._hub.links.values():
            link.seed(int(request["seed"]))
        return {}

    def _counters(self, request: dict[str, Any]) -> dict[str, Any]:
        rows = []
        for link in self._chosen(request):
            counts = {field.name: getattr(link.counters, field.name) for field in fields(Counters)}
            rows.append({"from": link.sender, "to": link.receiver, "waiting": link.pending, **counts})
        return {"links": rows}

    def _stop(self, request: dict[str, Any]) -> dict[str, Any]:
        self.stopped = True
        return {}


def serve(ports: Mapping[int, int], control_path: str, seed: int, frame_bytes: int, life: int) -> None:
    """Switch until ``life`` (a descriptor) reaches its end or ``stop`` is asked for."""
    hub = Hub(ports, seed, frame_bytes)
    control = Control(hub, control_path)
    port_of = {descriptor: port for port, descriptor in ports.items()}
    always: list[Any] = [*port_of, control.listener, life]
    while not control.stopped:
        # select, not epoll: few descriptors, and its timeout counts microseconds where epoll's rounds up to 1 ms
        ready, _, _ = select.select([*always, *control.connections()], [], [], hub.release())
        for item in ready:
            if isinstance(item, int) and item in port_of:
                hub.pump(port_of[item])
            elif item is control.listener:
                control.accept()
            elif item == life:
                if not os.read(life, 1):
                    return
            else:
                control.receive(item)


def main() -> None:
    parser = argparse.ArgumentParser(description="Ethernet switch in user space, for tests.")
    parser.add_argument("--port", action="append", required=True, metavar="NUMBER:NAMESPACE:DEVICE")
    parser.add_argument("--control", required=True, metavar="PATH", help="Unix socket to be controlled by")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mtu", type=int, default=1500)
    options = parser.parse_args()
    ports: dict[int, int] = {}
    for text in options.port:
        number, namespace, device = text.split(":")
        ports[int(number)] = open_tap(device, namespace)
    print("ready", flush=True)
    try:
        serve(ports, options.control, options.seed, options.mtu + ETHERNET_BYTES, sys.stdin.fileno())
    finally:
        Path(options.control).unlink(missing_ok=True)


class Switch:
    """A running switch. ``ports`` maps a host's number to (network namespace, device name).

    The devices exist, in their namespaces and down, when the constructor returns; who owns the namespaces gives
    them addresses. ``close`` ends the switch, and with it the devices.
    """

    def __init__(self, ports: Mapping[int, tuple[str, str]], *, seed: int = 0, mtu: int = 1500) -> None:
        self.ports = dict(ports)
        path = str(Path(tempfile.gettempdir(), f"ocf-switch-{secrets.token_hex(8)}.sock"))
        arguments = [f"--port={number}:{space}:{device}" for number, (space, device) in self.ports.items()]
        self._process = subprocess.Popen(
            [sys.executable, __file__, f"--control={path}", f"--seed={seed}", f"--mtu={mtu}", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # an interrupt from the terminal ends the test first, then the switch
        )
        try:
            self._socket = self._connect(path)
        except BaseException:
            self._end()
            raise
        self._lines = self._socket.makefile("r")

    def _connect(self, path: str) -> socket.socket:
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"ready\n":
            raise RuntimeError("the switch did not start; its message is above")
        deadline = time.monotonic() + 5.0
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        while True:
            try:
                connection.connect(path)
                break
            except OSError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    connection.close()
                    raise
                time.sleep(0.005)
        connection.settimeout(10.0)
        return connection

    def request(self, operation: str, **operands: Any) -> dict[str, Any]:
        """One request; ValueError with the switch's words when it refuses."""
        line = json.dumps({"op": operation, **operands}) + "\n"
        self._socket.sendall(line.encode())
        answer: dict[str, Any] = json.loads(self._lines.readline() or '{"ok": false, "error": "gone"}')
        if not answer.pop("ok"):
            raise ValueError(answer["error"])
        return answer

    def set(self, sender: int | str = "*", receiver: int | str = "*", **impairments: float | bool) -> None:
        """Change impairments (fields of ``Impairment``) of the links that match; "*" is every host."""
        self.request("set", **{"from": sender, "to": receiver}, **impairments)

    def reset(self) -> None:
        """Nothing is wrong with any link any more. Frames that wait for their time still go out then."""
        self.request("reset")

    def seed(self, seed: int) -> None:
        """Start the random numbers of every link anew."""
        self.request("seed", seed=seed)

    def cut(self, i: int, j: int, *, one_way: bool = False) -> None:
        """Cut the link from i to j, and unless ``one_way`` the link back."""
        self.set(i, j, cut=True)
        if not one_way:
            self.set(j, i, cut=True)

    def heal(self) -> None:
        """Undo all cuts; the other impairments stay."""
        self.set(cut=False)

    def counters(self) -> dict[tuple[int, int], dict[str, int]]:
        """Of each link (from, to): the fields of ``Counters``, and ``waiting`` (delayed frames)."""
        rows = self.request("counters")["links"]
        return {(row.pop("from"), row.pop("to")): row for row in rows}

    def close(self) -> None:
        """End the switch. May be called again."""
        self._lines.close()
        self._socket.close()
        self._end()

    def _end(self) -> None:
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=2.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


if __name__ == "__main__":
    main()
