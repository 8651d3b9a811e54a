"""What a client knows of one subscription, whatever the connection: where it is in each topic, and how it goes on."""

from __future__ import annotations

from dataclasses import dataclass, field

from ocfcluster.client.starting import FROM_NOW_ON, Earlier
from ocfcluster.wire import frames


@dataclass(slots=True, eq=False)
class SubscriptionState:
    """What is known of one subscription across connections. ``positions`` is kept by whoever reads its frames."""

    id: int
    topics: list[str]
    callback: bool
    filter: bytes = b""
    on_slow: int = 0
    earlier: Earlier = FROM_NOW_ON  # where it starts
    lend: int = -1  # descriptor of the agent's end
    cluster_id: str = ""
    starts: dict[str, frames.Start] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    positions: dict[int, int] = field(default_factory=dict)  # topic id: last seq taken over
    left_out: dict[int, int] = field(
        default_factory=dict
    )  # topic id: up to where the agent passed it by, at least
    connection: int = 0  # the connection whose frames are good; 0 while there is none
    incarnation: int = 0  # of the agent that has it, or had it last
    started: bool = False

    def miss(self, topic: str, last_seq: int) -> None:
        """The events up to ``last_seq`` will not come, and the program is told: no other agent need tell it again."""
        for topic_id, reached in self.positions.items():
            if self.names[topic_id] == topic:
                self.positions[topic_id] = max(reached, last_seq)

    def drop(self, topic: str) -> None:
        """The topic is no more; the subscription goes on with its others."""
        self.topics = [name for name in self.topics if name != topic]
        for topic_id in [one for one in self.positions if self.names[one] == topic]:
            del self.positions[topic_id]

    def accept(self, answer: frames.Subscribed, incarnation: int) -> None:
        self.incarnation = incarnation
        if answer.cluster_id:
            self.cluster_id = answer.cluster_id
        for start in answer.starts:
            self.starts.setdefault(start.topic, start)
            self.names[start.topic_id] = start.topic
            self.positions[start.topic_id] = start.next_seq - 1
        self.left_out.clear()
        self.started = True

    def request(self, incarnation: int = 0) -> frames.Subscribe:
        """SUBSCRIBE, for an agent of this incarnation."""
        if not self.started:
            return frames.Subscribe(
                self.id, self.topics, self.callback, "", [], self.filter, self.on_slow, *self.earlier
            )
        positions = [
            frames.Position(self.names[topic_id], topic_id, self._reached(topic_id, incarnation))
            for topic_id in self.positions
        ]
        cluster_id = self.cluster_id if positions else ""
        return frames.Subscribe(
            self.id, self.topics, self.callback, cluster_id, positions, self.filter, self.on_slow
        )

    def _reached(self, topic_id: int, incarnation: int) -> int:
        """The last seq that the program got, or its filter left out. Another incarnation counts local events anew."""
        start = self.starts.get(self.names[topic_id])
        if incarnation != self.incarnation and start is not None and start.local:
            return 0
        return max(self.positions[topic_id], self.left_out.get(topic_id, 0))
