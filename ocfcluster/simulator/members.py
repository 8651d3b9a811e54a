"""Programs that are members of groups: they join, cast, send, leave, die, and lose their connections and agents.

At both ends is the real code: the library's session and its memberships, and the agent's (``ipc.memberships``).
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Final

from ocfcluster import limits
from ocfcluster.client.producer import Batch, run_size
from ocfcluster.client.session import Session, Stage
from ocfcluster.errors import NoSuchMember
from ocfcluster.ipc import session as agent_side
from ocfcluster.ipc.memberships import Memberships
from ocfcluster.simulator.clients import ClientProfile, ClientProgram, Door, Sent
from ocfcluster.wire import control, frames
from ocfcluster.wire.frames import Answer, Request
from ocfcluster.wire.group import TO_PROPERTY, GroupCode, LeaveReason, message
from ocfcluster.wire.properties import encode_properties

if TYPE_CHECKING:
    from ocfcluster.simulator.history import Publication
    from ocfcluster.simulator.shell import Connection
    from ocfcluster.simulator.world import World

NOBODY: Final = 1 << 40  # the id of a member that there never was


@dataclass(slots=True)
class MemberProfile(ClientProfile):
    """What one program in groups does; ``topics`` are the groups that it may join."""

    dies: float = 0.0  # probability per action that its process dies, and another takes its place


class MemberDoor(Door):
    """The agent's end, with what it does for members of groups."""

    __slots__ = ("_agent", "memberships")

    def __init__(
        self,
        client: ClientProgram,
        line: Connection,
        agent: Connection,
        connection: int,
        welcome: frames.Welcome,
    ) -> None:
        super().__init__(client, line, connection, welcome)
        self._agent = agent  # of the agent itself: it outlives the program
        self.memberships = Memberships(self._command, 0)

    def _command(self, operand: control.Operand, then: object) -> None:
        assert callable(then)  # noqa: S101 - for the type checker
        self._agent.control(operand, lambda outcome: then(outcome.error, outcome.value))

    def request(self, request: agent_side.Incoming) -> None:
        """One of groups, or the end."""
        if request.kind == Request.GOODBYE:
            self.memberships.end(LeaveReason.LEFT)
            return
        body = frames.read_body(request.kind, request.body)
        assert isinstance(body, frames.GroupName)  # noqa: S101
        name, request_id = body.topic, request.request_id
        if request.kind == Request.GROUP_JOIN:
            self.memberships.join(name, lambda error, member: self._joined(name, request_id, error, member))
        else:
            self.memberships.leave(name, lambda error, _: self._left(request_id, error))

    def _joined(self, name: str, request_id: int, error: int, member: int) -> None:
        if not self.open:
            return
        if error:
            self.session.refuse(request_id, error, "not joined")
        else:
            self.session.answer(request_id, Answer.GROUP, frames.Group(name, 0, 0, member, []))
        self.pump()

    def _left(self, request_id: int, error: int) -> None:
        if not self.open:
            return
        if error:
            self.session.refuse(request_id, error, "not left")
        else:
            self.session.answer(request_id, Answer.DONE)
        self.pump()

    def close(self) -> None:
        self.memberships.end(LeaveReason.DIED)
        super().close()


class MemberProgram(ClientProgram):
    """One program on one node, in one group at a time or none."""

    __slots__ = ("_dies", "_group", "_opening")

    def __init__(self, world: World, profile: MemberProfile) -> None:
        super().__init__(world, profile)
        self._dies = profile.dies
        self._group = ""  # that it wants to be in
        self._opening = False

    @property
    def finished(self) -> bool:
        if self._host.retired:
            return True
        joined = not self._group or self.session.memberships.member(self._group) > 0
        return joined and super().finished

    @property
    def member(self) -> tuple[str, int] | None:
        """The group and the id there, where it is in one and its machine is not gone for good."""
        if self._host.retired or not self._group:
            return None
        return self._group, self.session.memberships.member(self._group)

    def describe(self) -> str:
        wanted = f", to be in {self._group}" if self._group else ""
        return f"{super().describe()}{wanted}, is {self.member}"

    # --- what it does -------------------------------------------------------------------------------------------

    def _new_door(self, line: Connection, welcome: frames.Welcome) -> Door:
        agent = self._host.connect()
        assert agent is not None  # noqa: S101 - it has just served the program itself
        return MemberDoor(self, line, agent, self._connections, welcome)

    def _publish(self) -> None:
        random: Random = self._random
        calm = self.now > self._world.calm_after
        session = self.session
        chance = random.random()
        if self._group and session.memberships.get(self._group) is None:
            self._group = ""  # its history has ended
        if not calm and chance < self._dies:
            self._die(orderly=random.random() < 0.3)
        elif not self._group:
            if chance < 0.4:
                self._group = random.choice(self.profile.topics)
                session.memberships.join(self._group, session.request)
                self._pump()
        elif not calm and chance > 0.93 and session.memberships.member(self._group):
            session.memberships.leave(self._group, session.request)
            self._group = ""
            self._pump()
        elif self._left:
            self._say(self._group if random.random() < 0.9 else random.choice(self.profile.topics))

    def _say(self, name: str) -> None:
        """A cast, or a message for one member: who is there, was there, or never was."""
        group = self._host.running.node.groups.by_name.get(name)
        if group is None:
            self._open(name)
            return
        random = self._random
        to = 0
        if random.random() < 0.25:
            to = random.choice([*group.members, NOBODY])
        member = self.session.memberships.member(name)
        count = min(self._left, random.randint(1, 3))
        code = GroupCode.SEND if to else GroupCode.CAST
        datas = [
            message(code, member, f"{self.profile.name}/{self._left - place}".encode(), to)
            for place in range(count)
        ]
        properties = encode_properties({TO_PROPERTY: str(to)}) if to else b""
        size = run_size(count, sum(map(len, datas)), properties)
        if not self._producer.has_room(size):
            return
        self._left -= count
        batch = Batch(self, name, group.topic.topic_id, 0, properties, list(datas), size)
        self._sent.append(Sent(batch, datas, 0, 0, []))
        self._producer.queue(batch, self.now)
        self.session.publish(self._producer, batch)
        self._pump()

    def _open(self, name: str) -> None:
        """As the agent does where a program casts to a group that is not in use."""
        line = self._host.connect()
        if line is not None and not self._opening:
            self._opening = True
            line.control(control.GroupOpen(name), lambda _: None)
            self._world.after(10 * limits.MILLISECOND_NS, self._opened_or_lost)

    def _opened_or_lost(self) -> None:
        self._opening = False

    def _die(self, *, orderly: bool) -> None:
        """The process ends, and what it knew; another begins in its place."""
        how = "ends in order" if orderly else "dies"
        self._world.trace.add(self.now, self.profile.node_id, "process", f"{self.profile.name} {how}")
        door = self._door
        if orderly and isinstance(door, MemberDoor) and self.session.stage is Stage.READY:
            door.memberships.end(LeaveReason.LEFT)
        self._lose(how)
        for sent in self._sent:
            self._world.checker.given_up(sent.publications)
            self.unknown += len(sent.datas)
        self._sent.clear()
        world = self._world
        self.session = Session(
            library="simulator", name=self.profile.name, resume=True, clock_ns=lambda: world.now
        )
        self._producer = self.session.add_producer(local=False)
        self._group = ""

    def _check_outcome(self, batch: Batch, offset: int, publication: Publication | None) -> None:
        if isinstance(batch.error, NoSuchMember):
            if publication is not None and publication.place is not None:
                self.complain(f"number {batch.number + offset} was delivered, and is said to be for nobody")
            return
        super()._check_outcome(batch, offset, publication)


def expected_members(programs: list[MemberProgram]) -> dict[str, set[int]]:
    """Who has to be in each group once all is at rest: the members of the programs that live."""
    expected: dict[str, set[int]] = {}
    for program in programs:
        found = program.member
        if found is not None:
            expected.setdefault(found[0], set()).add(found[1])
    return expected
