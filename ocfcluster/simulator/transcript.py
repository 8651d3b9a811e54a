"""What is written down of a scenario: its steps, and what each node delivered, said and answered meanwhile."""

from __future__ import annotations

from ocfcluster.protocol.effects import Delivery, Directed, GroupChange, Outcome, TopicChange, View
from ocfcluster.protocol.groups import FIRST_GROUP_ID
from ocfcluster.simulator import observe
from ocfcluster.simulator.history import what_changed
from ocfcluster.simulator.host import Host
from ocfcluster.simulator.script import change_words, message_words, notice_text, numbers_text, short
from ocfcluster.simulator.world import World
from ocfcluster.wire.run import read_header, run_events


class Transcript:
    """Lines about a world, in words that do not depend on chance."""

    __slots__ = ("_lines", "_shown", "_shown_notices", "_shown_receipts", "receipts", "world")

    def __init__(self, world: World) -> None:
        self.world = world
        self.receipts: dict[int, list[Outcome]] = {}
        self._lines: list[str] = []
        self._shown: dict[int, int] = {}
        self._shown_receipts: dict[int, int] = {}
        self._shown_notices: dict[int, int] = {}

    def begin(self, node_id: int) -> None:
        """A machine that is watched from here on."""
        self.receipts[node_id] = []
        self._shown[node_id] = self._shown_receipts[node_id] = self._shown_notices[node_id] = 0

    def say(self, text: str) -> None:
        """A line of the transcript."""
        self._lines.append(f"> {text}")

    @property
    def transcript(self) -> str:
        return "\n".join(self._lines) + "\n"

    def host(self, node_id: int) -> Host:
        return self.world.hosts[node_id]

    @property
    def histories(self) -> list[str]:
        return list(self.world.checker.histories)

    def delivered(self, node_id: int) -> list[str]:
        """What the node delivered since the last ``show``: events as ``topic:seq=data``, topic changes and views in
        words."""
        host = self.host(node_id)
        return [text for item in host.delivered[self._shown[node_id] :] for text in self._texts(item)]

    def show(self, *nodes: int) -> None:
        """For each node: what it delivered, what it told its programs of itself, and the receipts it gave, since this
        was asked last."""
        for node_id in nodes or tuple(self.world.hosts):
            host = self.host(node_id)
            delivered = self.delivered(node_id)
            self._shown[node_id] = len(host.delivered)
            receipts = self.receipts[node_id][self._shown_receipts[node_id] :]
            self._shown_receipts[node_id] = len(self.receipts[node_id])
            state = "" if host.alive else " (dead)" if host.boots else " (off)"
            text = ", ".join(delivered) or "nothing"
            self._lines.append(f"  node {node_id}{state} delivered {text}")
            notices = host.notices[self._shown_notices[node_id] :]
            self._shown_notices[node_id] = len(host.notices)
            self._lines += [f"  node {node_id} {notice_text(notice)}" for notice in notices]
            for outcome in receipts:
                numbers = numbers_text(outcome.first_number, outcome.count)
                what = (
                    f"errno {outcome.error}"
                    if outcome.error
                    else f"seq {numbers_text(outcome.seq, outcome.count)}"
                )
                self._lines.append(f"  node {node_id}{state} answered number {numbers}: {what}")

    def forget(self, *nodes: int) -> None:
        """What these nodes (none named: all) delivered, told and answered so far is not shown."""
        for node_id in nodes or tuple(self.world.hosts):
            host = self.host(node_id)
            self._shown[node_id] = len(host.delivered)
            self._shown_notices[node_id] = len(host.notices)
            self._shown_receipts[node_id] = len(self.receipts[node_id])

    def show_states(self, *nodes: int) -> None:
        """For each node: its state, epoch, members and sequencer, and what it waits for."""
        for node_id in nodes or tuple(self.world.hosts):
            self._lines.append(f"  node {node_id}: {self.state_text(node_id)}")

    def state_text(self, node_id: int) -> str:
        shell = self.host(node_id).shell
        if shell is None:
            return "down"
        text = shell.state.value
        configuration = shell.node.configuration
        if configuration is not None:
            known = self.histories
            members = " ".join(str(member.node_id) for member in configuration.members)
            number = known.index(configuration.cluster_id) + 1 if configuration.cluster_id in known else 0
            text += (
                f", history {number} epoch {configuration.epoch}, members {members}, "
                f"sequencer {configuration.sequencer}"
            )
            if not observe.is_primary(shell.node):
                text += ", not primary"
        waits = shell.node.waiting_for
        return text + (f", waits for {waits}" if waits else "")

    def show_held(self, since: int) -> None:
        """How far each node holds the order, counted from index ``since``."""
        held = [
            f"node {node_id}: {observe.held_index(host.shell.node) - since}"
            for node_id, host in self.world.hosts.items()
            if host.shell is not None
        ]
        self._lines.append(f"  held more than before: {', '.join(held)}")

    @property
    def held(self) -> int:
        """The lowest index that all nodes that are up hold."""
        return min(
            observe.held_index(host.shell.node)
            for host in self.world.hosts.values()
            if host.shell is not None
        )

    def _texts(self, item: Delivery | TopicChange | View | GroupChange | Directed) -> list[str]:
        if isinstance(item, View):
            return [self._view_text(item)]
        if isinstance(item, GroupChange):
            return [f"{item.topic.name}:{item.seq}={change_words(item)}"]
        if isinstance(item, Directed):
            return [f"{text} for {item.to}" for text in self._texts(item.delivery)]
        if isinstance(item, TopicChange):
            return [f"topic {item.topic.name} {what_changed(item)}"]
        name = f"topic {item.topic_id}"
        for host in self.world.hosts.values():
            if host.shell is None:
                continue
            node = host.shell.node
            group = node.groups.by_id.get(item.topic_id)
            topic = node.topic_by_id(item.topic_id) if group is None else group.topic
            if topic is not None:
                name = topic.name
                break
        datas = list(run_events(item.run, read_header(item.run)))[item.skip :]
        if item.topic_id >= FIRST_GROUP_ID:
            return [f"{name}:{item.seq + place}={message_words(data)}" for place, data in enumerate(datas)]
        return [f"{name}:{item.seq + place}={short(data)}" for place, data in enumerate(datas)]

    def _view_text(self, view: View) -> str:
        configuration = view.configuration
        members = " ".join(str(member.node_id) for member in configuration.members)
        joined = "".join(f" +{member.node_id}" for member in view.joined)
        left = "".join(f" -{member.node_id}" for member in view.left)
        event = f"{view.seq}=" if view.seq else ""
        number = self.histories.index(configuration.cluster_id) + 1
        history = f"history {number} " if number > 1 else ""
        return (
            f"view {event}[{history}epoch {configuration.epoch}: {members};{joined}{left}"
            f" sequencer {configuration.sequencer}, m_sequence {configuration.m_sequence}]"
        )
