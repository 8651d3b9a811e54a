"""A program on one node that takes nothing: what its policy makes of it for the publishers, and for itself."""

from __future__ import annotations

from collections import deque

import pytest

from ocfcluster.ipc.delivery import Hub, Marks
from ocfcluster.ipc.slow import SlowBudget
from ocfcluster.ipc.subscription import Subscription
from ocfcluster.limits import KIB, RECORD_HEADER_BYTES, SECOND_NS
from ocfcluster.protocol.effects import Delivery, TopicChange
from ocfcluster.simulator.clients import SimulatedSocket
from ocfcluster.simulator.scenario import Scenario
from ocfcluster.wire.frames import EVENT_HEADER, RECORD_HEADER, NoticeCode, OnSlow, RecordKind, read_notice
from tests.scenarios.transcript import check

EVENTS = 120
WINDOW = 64 * KIB
MARKS = Marks(full=64 * KIB, hard=4096 * KIB, held=8192 * KIB)


class Program:
    """One subscription, through the agent's own hub, whose program takes nothing until ``take_all``."""

    def __init__(self, scenario: Scenario, node: int, topic: str, on_slow: OnSlow) -> None:
        self._scenario = scenario
        self._host = scenario.host(node)
        self._hub = Hub(self, SlowBudget(2 * SECOND_NS, 60 * SECOND_NS), MARKS)
        self._socket = SimulatedSocket()
        self.blocked_for_ns = 0
        self._full_since = 0
        topic_id = self._host.running.node.topics[topic].topic_id
        self._subscription = self._hub.add(
            self._hub.open_line(1), 1, self._socket, {topic_id: topic}, False, on_slow
        )
        assert self._host.connect(None, self._delivered) is not None
        self._tick()

    def _delivered(self, item: Delivery | TopicChange) -> None:
        if isinstance(item, Delivery) and item.topic_id in self._hub.by_topic:
            header = RECORD_HEADER.pack(
                RECORD_HEADER_BYTES + len(item.run), RecordKind.RUN, 0, 0, item.skip, item.node_id,
                item.incarnation, item.m_sequence, item.seq, item.ev_id, item.order_time,
            )  # fmt: skip
            self._hub.deliver(
                item.topic_id, header, item.run, item.seq, item.seq + item.count - item.skip - 1
            )
            self._hub.flush(self._scenario.world.now)

    def _tick(self) -> None:
        self._hub.flush(self._scenario.world.now)
        self._scenario.world.after(20_000_000, self._tick)

    def take_all(self) -> list[str]:
        """Everything that comes now, in words."""
        said: list[str] = []
        while True:
            messages, self._socket.frames = self._socket.frames, deque()
            for message in messages:
                at = EVENT_HEADER.size
                for _ in range(EVENT_HEADER.unpack_from(message)[3]):
                    fields = RECORD_HEADER.unpack_from(message, at)
                    body = message[at + RECORD_HEADER.size : at + fields[0]]
                    at += fields[0]
                    said.append(_words(fields, body))
            if not self._subscription.blocked:
                return _joined(said)
            self._hub.writable(self._subscription, self._scenario.world.now)

    # --- the hub's shell ----------------------------------------------------------------------------------------

    def watch_writable(self, subscription: Subscription, watch: bool) -> None: ...
    def own_full_changed(self, connection: int, full: list[int]) -> None: ...
    def subscription_broken(self, subscription: Subscription) -> None: ...
    def left_out(self, subscription: Subscription, positions: dict[int, int]) -> None: ...
    def tick(self, now: int) -> None: ...

    def full_changed(self, full: bool) -> None:
        now = self._scenario.world.now
        if full:
            self._full_since = now
        else:
            self.blocked_for_ns += now - self._full_since
        if self._host.shell is not None:
            self._host.shell.set_full(full)


def _words(fields: tuple[int, ...], body: bytes) -> str:
    if fields[1] != RecordKind.NOTICE:
        return str(fields[8])
    notice = read_notice(body)
    text = f"{NoticeCode(notice.code).name.lower()} {notice.first_seq}-{notice.last_seq}"
    return text + (" and the end" if notice.final else "")


def _joined(said: list[str]) -> list[str]:
    """Runs of consecutive seqs as one."""
    found: list[str] = []
    for word in said:
        first, _, last = found[-1].partition(" to ") if found else ("", "", "")
        if word.isdigit() and first.isdigit() and int(word) == int(last or first) + 1:
            found[-1] = f"{first} to {word}"
        else:
            found.append(word)
    return found


@pytest.mark.parametrize("on_slow", list(OnSlow), ids=lambda policy: policy.name.lower())
def test_a_program_that_takes_nothing(on_slow: OnSlow) -> None:
    scenario = Scenario(nodes=3, window_bytes=WINDOW)
    scenario.form()
    scenario.create_topic("t")
    program = Program(scenario, 3, "t", on_slow)
    publisher = scenario.publisher(node=2)
    scenario.say(f"a program on node 3 subscribes with {on_slow.name} and takes nothing")
    scenario.say(f"a program on node 2 publishes {EVENTS} events of 4 KiB")
    begun = scenario.world.now
    for _ in range(EVENTS):
        publisher.publish("t", bytes(4 * KIB), quiet=True)
    scenario.wait_for(lambda: not publisher.unanswered, "all receipts")
    took_ms = (scenario.world.now - begun) // 1_000_000
    if on_slow is OnSlow.BLOCK:
        scenario.say("the publisher waited for it, as long as the budget is, and no longer")
        assert 2000 <= took_ms < 3000
        assert program.blocked_for_ns <= 2.1 * SECOND_NS
    else:
        scenario.say("the publisher did not wait for it")
        assert took_ms < 500
        assert program.blocked_for_ns == 0
    scenario.run(ms=100)
    got = program.take_all()
    scenario.say(f"it takes what there is: {', '.join(got)}")
    assert scenario.host(1).cursor == scenario.host(2).cursor == scenario.host(3).cursor
    publisher.publish("t", b"after")
    scenario.run(ms=100)
    scenario.say(f"then: {', '.join(program.take_all()) or 'nothing'}")
    check(scenario, f"slow_{on_slow.name.lower()}")
