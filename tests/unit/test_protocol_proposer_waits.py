"""A proposer that has to wait lets time pass between two looks."""

from __future__ import annotations

from ocfcluster.limits import SECOND_NS
from ocfcluster.protocol.judgement import Evidence, Judgement, Wait
from ocfcluster.protocol.messages import HELD, Instance, Message, Promise
from ocfcluster.protocol.proposer import Proposer
from ocfcluster.protocol.settings import Ballot, Configuration
from tests.unit.protocol_world import START_NS, configuration_of, settings_of

TABLE = {1: 1, 2: 1, 3: 1}
CONFIGURATION = configuration_of(TABLE)


class Ground:
    """Nobody else is there; what is said is kept."""

    def __init__(self) -> None:
        self.said: list[Message] = []

    def say(self, message: Message) -> None:
        self.said.append(message)

    def evidence(self, promises: dict[int, Promise], incarnations: dict[int, int], now: int) -> Evidence:
        return Evidence(
            CONFIGURATION, promises, incarnations, set(), lambda _one, _other: True, set(), set(), [], now
        )

    def expected(self) -> set[int]:
        return {1, 2}

    def yields(self, rival: Ballot, now: int) -> bool:
        return False

    def first_value(self, incarnations: dict[int, int], now: int) -> Configuration:
        raise AssertionError("this is no bootstrap")

    def new_history(
        self, promises: dict[int, Promise], incarnations: dict[int, int], topics_digest: int, now: int
    ) -> Configuration | None:
        return None

    def decided(self, value: Configuration, now: int) -> None:
        raise AssertionError("nothing is to be decided")


def promise(proposer: Proposer, node_id: int) -> Promise:
    return Promise(
        *proposer.instance, proposer.ballot, 2000 + node_id, HELD, 5, 0, None, None, None, 0, False, 0, 0
    )


def test_a_proposer_that_has_to_wait_looks_again_only_now_and_then() -> None:
    """With promises enough and nothing that may be proposed of them, time must pass between two looks."""

    def wait(_: Evidence) -> Judgement:
        return Wait("node 3")

    ground = Ground()
    proposer = Proposer(settings_of(1, TABLE), ground, wait)
    now = START_NS
    proposer.begin(
        Instance(CONFIGURATION.cluster_id, 1), 1, now,
        configuration=CONFIGURATION, acceptors={one.node_id: one.store_id for one in CONFIGURATION.members},
    )  # fmt: skip
    for node_id in (1, 2):
        proposer.on_promise(node_id, 1000 + node_id, promise(proposer, node_id), now)
    rings = 0
    while now < START_NS + 10 * SECOND_NS:
        due = proposer.next_timer()
        assert due > now or rings == 0
        now = max(now, due)
        proposer.timer(now)
        rings += 1
    assert proposer.waiting_for == "node 3"
    assert rings < 50
    assert 20 < len(ground.said) < 50  # it goes on asking those that have not answered
