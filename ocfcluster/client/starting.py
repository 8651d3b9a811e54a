"""Where a program wants a subscription to start: at the next event, or earlier, with events that are kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from ocfcluster.errors import InvalidArgument
from ocfcluster.wire.frames import Begin

_SEQ_END: Final = 1 << 64


class Position(NamedTuple):
    """The place of an event in its topic, for ``subscribe(from_seq=...)``, also in another process and later.

    It names the history of the cluster and the topic's id, so a topic that was made again under the same name, or a
    cluster that began anew, is not taken for the one that it was. Of a local topic it is good as long as its agent
    lives.
    """

    cluster_id: str
    topic_id: int
    seq: int

    @property
    def next(self) -> Position:
        """The place behind it: where to go on after the event."""
        return self._replace(seq=self.seq + 1)


class Earlier(NamedTuple):
    """What a subscription asks for beside what comes from now on."""

    begins: list[Begin] = []  # noqa: RUF012 - never changed
    from_last: int = 0
    retained: bool = False


FROM_NOW_ON: Final = Earlier()
FromSeq = int | Position | Mapping[str, int | Position]


def as_earlier(topics: list[str], from_seq: FromSeq | None, from_last: int | None, retained: bool) -> Earlier:
    """The arguments of ``subscribe``, checked. Raises InvalidArgument."""
    if (from_seq is not None) + (from_last is not None) + bool(retained) > 1:
        raise InvalidArgument("give one of from_seq, from_last and retained")
    if not isinstance(retained, bool):
        raise InvalidArgument(f"retained is True or False, not {retained!r:.80}")
    if from_last is not None:
        return Earlier([], _number("from_last", from_last, 0))
    if from_seq is None:
        return Earlier([], 0, True) if retained else FROM_NOW_ON
    if isinstance(from_seq, Mapping):
        strangers = [name for name in from_seq if name not in topics]
        if strangers:
            raise InvalidArgument(f"from_seq names {strangers[0]!r:.80}, which is not subscribed to")
        return Earlier([_begin(name, seq) for name, seq in from_seq.items()])
    if len(topics) != 1:
        raise InvalidArgument("several topics: from_seq is a dict from a topic's name to its seq or position")
    return Earlier([_begin(topics[0], from_seq)])


def _begin(topic: str, seq: Any) -> Begin:
    if not isinstance(seq, Position):
        return Begin(topic, _number("from_seq", seq, 1))
    cluster_id: Any = seq.cluster_id
    topic_id: Any = seq.topic_id
    number = seq.seq
    if not (isinstance(cluster_id, str) and isinstance(topic_id, int) and 0 < topic_id < 1 << 32):
        raise InvalidArgument(f"{seq!r:.200} is no position of an event")
    return Begin(topic, _number("from_seq", number, 1), topic_id, cluster_id)


def _number(what: str, value: Any, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidArgument(f"{what} is a whole number, not {value!r:.80}")
    if not least <= value < _SEQ_END:
        raise InvalidArgument(f"{what} {value}: {least} to 2^64 - 1 are allowed")
    return value
