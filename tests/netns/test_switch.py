"""Hosts and what can be done to their network: the test equipment itself, on both kinds of link."""

from __future__ import annotations

import errno
import itertools
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.hosts import NAMESPACES, Hosts, remove_leftovers

pytestmark = pytest.mark.netns

ROOT = Path(__file__).parents[2]
GROUP = "239.192.77.9"
PORT = 5999
UDP_SEGMENT = 103
NUMBER = struct.Struct("<IQ")  # a datagram's number and when it was sent, ns
FRAMES = 4000


class Probe:
    """A UDP socket of each host; datagrams between them are numbered and carry their time."""

    def __init__(self, hosts: Hosts) -> None:
        self.hosts = hosts
        self.sockets: dict[int, socket.socket] = {}
        for i in hosts.numbers:
            opened = self.sockets[i] = hosts.socket(i)
            opened.setsockopt(socket.SOL_SOCKET, 33, 32 << 20)  # SO_RCVBUFFORCE
            opened.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 0)
            opened.bind(("", PORT))
            member = socket.inet_aton(GROUP) + socket.inet_aton(hosts.address(i))
            opened.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
            opened.setblocking(False)

    def send(self, i: int, to: int | str, count: int) -> None:
        """``count`` datagrams from ``i``, not faster than a switch takes them."""
        destination = (self.hosts.address(to) if isinstance(to, int) else to, PORT)
        for n in range(count):
            self.sockets[i].sendto(NUMBER.pack(n, time.monotonic_ns()), destination)
            if n % 200 == 199:
                time.sleep(0.002)

    def receive(self, i: int, quiet_s: float = 0.15) -> list[tuple[int, float]]:
        """What came to ``i`` until it was quiet: numbers, and milliseconds each was under way."""
        came = []
        until = time.monotonic() + quiet_s
        while time.monotonic() < until:
            try:
                number, sent_ns = NUMBER.unpack(self.sockets[i].recv(100))
            except BlockingIOError:
                time.sleep(0.001)
                continue
            came.append((number, (time.monotonic_ns() - sent_ns) / 1e6))
            until = time.monotonic() + quiet_s
        return came

    def numbers(self, i: int, quiet_s: float = 0.15) -> list[int]:
        return [number for number, _ in self.receive(i, quiet_s)]

    def close(self) -> None:
        for opened in self.sockets.values():
            opened.close()


@pytest.fixture(scope="module", params=["bridge", "switch"])
def hosts(request: pytest.FixtureRequest) -> Iterator[Hosts]:
    with Hosts(3, link=request.param, seed=7) as made:
        yield made


@pytest.fixture(scope="module")
def switched() -> Iterator[Hosts]:
    with Hosts(3, link="switch", seed=7) as made:
        yield made


@pytest.fixture
def probe(hosts: Hosts) -> Iterator[Probe]:
    made = Probe(hosts)
    yield made
    made.close()
    hosts.set_loss(0)
    hosts.heal()


@pytest.fixture
def wire(switched: Hosts) -> Iterator[Probe]:
    assert switched.switch is not None
    made = Probe(switched)
    yield made
    made.close()
    switched.switch.reset()


ALL = list(range(FRAMES))


def test_multicast_reaches_all_others_whole_and_in_order(probe: Probe) -> None:
    probe.send(1, GROUP, FRAMES)
    assert probe.numbers(2) == ALL
    assert probe.numbers(3) == ALL
    assert probe.numbers(1) == []


def test_unicast_reaches_one(probe: Probe) -> None:
    probe.send(3, 1, FRAMES)
    assert probe.numbers(1) == ALL
    assert probe.numbers(2, 0.02) == []


def test_ipv6_reaches_the_other(hosts: Hosts) -> None:
    with hosts.socket(1, socket.AF_INET6) as sender, hosts.socket(2, socket.AF_INET6) as receiver:
        receiver.bind((hosts.address(2, 6), PORT))
        receiver.settimeout(5.0)
        sender.sendto(b"six", (hosts.address(2, 6), PORT))
        assert receiver.recv(100) == b"six"


@pytest.mark.parametrize("percent", [1, 20])
def test_loss_is_as_told_on_each_link(probe: Probe, percent: int) -> None:
    probe.hosts.set_loss(percent)
    probe.send(1, GROUP, FRAMES)
    came = [probe.numbers(i) for i in (2, 3)]
    assert came[0] != came[1], "each link loses frames of its own"
    for numbers in came:
        assert FRAMES - len(numbers) == pytest.approx(FRAMES * percent / 100, rel=0.5)
        assert numbers == sorted(numbers)


def test_loss_acts_on_single_frames_of_a_segmented_send(probe: Probe) -> None:
    probe.hosts.set_loss(20)
    control = [(socket.SOL_UDP, UDP_SEGMENT, struct.pack("=H", NUMBER.size))]
    for first in range(0, FRAMES, 40):
        burst = b"".join(NUMBER.pack(n, 0) for n in range(first, first + 40))
        try:
            probe.sockets[1].sendmsg([burst], control, 0, (GROUP, PORT))
        except OSError as error:  # kernels before 6.11 segment only for devices that do checksums
            if error.errno != errno.EIO:
                raise
            pytest.skip("this kernel does not segment sends to this device")
        time.sleep(0.001)
    came = probe.numbers(2)
    assert len(came) == pytest.approx(FRAMES * 0.8, rel=0.05)
    whole = sum(set(range(first, first + 40)) <= set(came) for first in range(0, FRAMES, 40))
    assert whole < FRAMES / 40 / 10, "bursts are lost frame by frame"


def test_a_cut_link_is_cut_both_ways_and_only_it(probe: Probe) -> None:
    probe.hosts.cut(1, 2)
    probe.send(1, GROUP, 10)
    probe.send(2, GROUP, 10)
    assert probe.numbers(1) == []
    assert probe.numbers(2, 0.02) == []
    assert probe.numbers(3, 0.02) == [*range(10), *range(10)]
    probe.hosts.heal()
    probe.send(1, 2, 10)
    assert probe.numbers(2) == list(range(10))


def test_a_one_way_cut_leaves_the_way_back(probe: Probe) -> None:
    probe.hosts.cut(1, 2, one_way=True)
    probe.send(1, 2, 10)
    probe.send(2, 1, 10)
    assert probe.numbers(1) == list(range(10))
    assert probe.numbers(2, 0.02) == []


def test_delay_and_jitter(wire: Probe) -> None:
    assert wire.hosts.switch is not None
    wire.hosts.switch.set(1, 2, delay_ms=10.0, jitter_ms=10.0)
    wire.send(1, GROUP, 500)
    straight, came = wire.receive(3), wire.receive(2)
    assert [number for number, _ in came] == list(range(500))
    assert [number for number, _ in straight] == list(range(500))
    # Sockets are read one after the other here, so only the least time under way is the link's own.
    assert min(ms for _, ms in came) >= 10.0


def test_delay_is_not_much_longer_than_told(wire: Probe) -> None:
    assert wire.hosts.switch is not None
    wire.hosts.switch.set(1, 2, delay_ms=5.0)
    under_way = []
    for _ in range(20):
        wire.send(1, 2, 1)
        under_way += [ms for _, ms in wire.receive(2, 0.02)]
    assert len(under_way) == 20
    assert min(under_way) >= 5.0
    assert sorted(under_way)[10] < 8.0


def test_reordering_lets_later_frames_pass(wire: Probe) -> None:
    assert wire.hosts.switch is not None
    wire.hosts.switch.set(1, 2, reorder=0.1, reorder_ms=3.0)
    before = wire.hosts.switch.counters()[1, 2]["reordered"]
    wire.send(1, 2, FRAMES)
    came = wire.numbers(2)
    assert sorted(came) == ALL
    highest = itertools.accumulate(came, max)
    overtaken = sum(number < most for number, most in zip(came, highest, strict=True))
    assert overtaken == pytest.approx(FRAMES * 0.1, rel=0.5)
    held_back = wire.hosts.switch.counters()[1, 2]["reordered"] - before
    assert held_back == pytest.approx(FRAMES * 0.1, rel=0.3)


def test_duplication(wire: Probe) -> None:
    assert wire.hosts.switch is not None
    wire.hosts.switch.set(1, 2, duplicate=0.1)
    wire.send(1, 2, FRAMES)
    came = wire.numbers(2)
    assert sorted(set(came)) == ALL
    assert len(came) - FRAMES == pytest.approx(FRAMES * 0.1, rel=0.3)


def test_the_same_seed_loses_the_same_frames(wire: Probe) -> None:
    switch = wire.hosts.switch
    assert switch is not None
    switch.set(1, 2, loss=0.2)

    def survivors(seed: int) -> list[int]:
        for _ in range(10):
            switch.seed(seed)
            before = switch.counters()[1, 2]["offered"]
            wire.send(1, 2, 500)
            came = wire.numbers(2)
            if switch.counters()[1, 2]["offered"] - before == 500:
                return came
        pytest.fail("the kernel's own frames (group membership reports) never stopped")

    first = survivors(42)
    assert len(first) < 500
    assert survivors(42) == first
    assert survivors(43) != first


def test_counters_add_up(wire: Probe) -> None:
    switch = wire.hosts.switch
    assert switch is not None
    switch.set(loss=0.1, duplicate=0.1, reorder=0.1, reorder_ms=1.0, delay_ms=1.0)
    wire.send(1, GROUP, FRAMES)
    wire.receive(2)
    for row in switch.counters().values():
        arrived = row["frames"] + row["refused"] + row["lost"] + row["cut"] + row["overflow"]
        assert arrived + row["waiting"] == row["offered"] + row["duplicated"]


def test_programs_run_in_their_host_and_end_with_it() -> None:
    with Hosts(2) as hosts:
        shown = hosts.run(2, ["ip", "-brief", "address", "show", "dev", "eth0"]).stdout
        assert hosts.address(2) in shown
        script = "sleep 1000 & echo $!; wait"
        parent = hosts.popen(1, ["sh", "-c", script], stdout=subprocess.PIPE, text=True)
        assert parent.stdout is not None
        child = parent.stdout.readline().strip()
        assert parent.poll() is None
        names = [hosts.namespace(i) for i in hosts.numbers]
    parent.stdout.close()
    assert parent.returncode == -signal.SIGTERM
    assert not any((NAMESPACES / name).exists() for name in names)
    wait_until_gone(Path("/proc", child))


def wait_until_gone(path: Path) -> None:
    deadline = time.monotonic() + 5
    while path.exists():
        assert time.monotonic() < deadline, f"{path} is still there"
        time.sleep(0.02)


HOLD = """
import sys, time
from tests.netns.hosts import Hosts
hosts = Hosts(2, link="switch").open()
child = hosts.popen(1, ["sleep", "1000"])
print(hosts.namespace(1), child.pid, flush=True)
time.sleep(1000)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_stays_when_the_owner_is_ended(number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD], cwd=ROOT, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        name, child = owner.stdout.readline().split()
        assert (NAMESPACES / name).exists()
        owner.send_signal(number)
        owner.wait(timeout=20)
    if number == signal.SIGKILL:  # it could not clean up: the next one does
        remove_leftovers()
    wait_until_gone(NAMESPACES / name)
    wait_until_gone(Path("/proc", child))
