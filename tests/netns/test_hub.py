"""The switch's inside, without devices and root: decisions about frames, and where they go."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.netns.switch import BURST_FRAMES, LINK_QUEUE_BYTES, Control, Hub, Link

FRAMES = 20_000
MS = 1_000_000


def decisions(seed: int, frames: int = FRAMES, **impairments: float | bool) -> list[list[int]]:
    link = Link(1, 2, -1, seed)
    link.set(impairments)
    return [link.offer(100, n * MS) for n in range(frames)]


def test_a_seed_gives_the_same_decisions_again_and_another_seed_others() -> None:
    wrong: dict[str, Any] = {
        "loss": 0.1,
        "delay_ms": 3.0,
        "jitter_ms": 2.0,
        "reorder": 0.1,
        "reorder_ms": 5,
        "duplicate": 0.1,
    }
    assert decisions(7, **wrong) == decisions(7, **wrong)
    assert decisions(7, **wrong) != decisions(8, **wrong)


def test_links_of_one_seed_have_numbers_of_their_own() -> None:
    links = [Link(1, 2, -1, 7), Link(2, 1, -1, 7)]
    for link in links:
        link.set({"loss": 0.5})
    there, back = ([link.offer(100, 0) for _ in range(100)] for link in links)
    assert there != back


@pytest.mark.parametrize("loss", [0.01, 0.05, 0.2])
def test_loss_is_as_told(loss: float) -> None:
    lost = decisions(1, loss=loss).count([])
    assert lost == pytest.approx(loss * FRAMES, rel=0.15)


def test_jitter_keeps_the_order_and_reordering_does_not() -> None:
    due = [times[0] for times in decisions(1, delay_ms=5.0, jitter_ms=10.0)]
    assert due == sorted(due)
    assert all(5 * MS <= at - n * MS <= 15 * MS for n, at in enumerate(due))
    late = [n for n, [at] in enumerate(decisions(1, reorder=0.1, reorder_ms=4.5)) if at - n * MS == 4.5 * MS]
    assert len(late) == pytest.approx(0.1 * FRAMES, rel=0.15)


def test_duplicates_are_two_of_the_same_time() -> None:
    twice = [times for times in decisions(1, duplicate=0.1) if len(times) == 2]
    assert len(twice) == pytest.approx(0.1 * FRAMES, rel=0.15)
    assert all(first == second for first, second in twice)


@pytest.mark.parametrize(
    "change", [{"loss": 1.5}, {"loss": -0.1}, {"delay_ms": -1}, {"cut": 1}, {"speed": 3}, {"loss": "much"}]
)
def test_what_cannot_be_is_refused_and_changes_nothing(change: dict[str, object]) -> None:
    link = Link(1, 2, -1, 0)
    link.set({"loss": 0.5})
    with pytest.raises((ValueError, TypeError)):
        link.set(change)
    assert link.impairment.loss == 0.5


class Wires:
    """Three ports of a hub whose far ends are sockets of this test."""

    def __init__(self) -> None:
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(3)]
        self.near = [near for near, _ in pairs]
        self.far = {i: far for i, (_, far) in enumerate(pairs, 1)}
        for end in (*self.near, *self.far.values()):
            end.setblocking(False)
        self.hub = Hub({i: near.fileno() for i, near in enumerate(self.near, 1)}, 0, 2000)

    def send(self, i: int, to: bytes, text: bytes) -> None:
        self.far[i].send(to + address(i) + text)
        self.hub.pump(i)

    def received(self, i: int) -> list[bytes]:
        frames = []
        while True:
            try:
                frames.append(self.far[i].recv(2000)[12:])
            except BlockingIOError:
                return frames

    def wait(self) -> None:
        while (wait_s := self.hub.release()) is not None:
            time.sleep(wait_s)


def address(i: int) -> bytes:
    return bytes((2, 0, 0, 0, 0, i))


EVERYBODY = b"\xff" * 6


@pytest.fixture
def wires() -> Iterator[Wires]:
    made = Wires()
    yield made
    for end in (*made.near, *made.far.values()):
        end.close()


def test_frames_go_to_all_until_the_receiver_is_known(wires: Wires) -> None:
    wires.send(1, address(2), b"unknown")
    assert (wires.received(2), wires.received(3)) == ([b"unknown"], [b"unknown"])
    wires.send(2, address(1), b"known")
    wires.send(1, address(2), b"known")
    wires.send(1, EVERYBODY, b"all")
    assert wires.received(1) == [b"known"]
    assert wires.received(2) == [b"known", b"all"]
    assert wires.received(3) == [b"all"]


def test_one_turn_of_a_port_is_bounded(wires: Wires) -> None:
    for n in range(BURST_FRAMES + 1):
        wires.far[1].send(EVERYBODY + address(1) + b"%d" % n)
    wires.hub.pump(1)
    assert len(wires.received(2)) == BURST_FRAMES


def test_a_healed_link_does_not_let_new_frames_pass_delayed_ones(wires: Wires) -> None:
    link = wires.hub.links[1, 2]
    link.set({"delay_ms": 20.0})
    wires.send(1, EVERYBODY, b"first")
    link.set({"delay_ms": 0.0})
    wires.send(1, EVERYBODY, b"second")
    assert wires.received(3) == [b"first", b"second"]
    assert wires.received(2) == []
    wires.wait()
    assert wires.received(2) == [b"first", b"second"]
    assert link.clean


def test_what_is_under_way_on_a_cut_link_does_not_arrive(wires: Wires) -> None:
    link = wires.hub.links[1, 2]
    link.set({"delay_ms": 1.0})
    wires.send(1, EVERYBODY, b"late")
    link.set({"cut": True})
    wires.wait()
    assert wires.received(2) == []
    assert (link.counters.cut, link.pending, link.pending_bytes) == (1, 0, 0)


def test_delayed_frames_of_a_link_are_bounded() -> None:
    link = Link(1, 2, -1, 0)
    link.set({"delay_ms": 1000.0})
    link.pending_bytes = LINK_QUEUE_BYTES - 150
    assert len(link.offer(100, 0)) == 1
    assert link.offer(200, 0) == []
    assert link.counters.overflow == 1


@pytest.mark.parametrize(
    "line", [b"", b"{", b"[]", b"{}", b'{"op":"fly"}', b'{"op":"set","from":9}', b'{"op":"set","loss":2}']
)
def test_bad_requests_are_answered_with_what_is_wrong(
    wires: Wires, line: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    control = Control(wires.hub, str(tmp_path_factory.mktemp("c") / "s"))
    try:
        answer = control._answer(line)
    finally:
        control.listener.close()
    assert answer["ok"] is False
    assert answer["error"]
