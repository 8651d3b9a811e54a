"""One producer of the client, sans-IO: numbers, runs, the window, and what is not answered yet.

A producer is where *exactly once* comes from: its publications are numbered 1, 2, 3, ... and the cluster takes each
number once, so whatever is not answered may be sent again on any connection. Publications become *batches*; a
batch becomes one run. Numbers are given when the run is built, which is when the producer's id is known.
"""

from __future__ import annotations

import errno
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any, Final, Protocol

from ocfcluster.errors import ClientError, OutcomeUnknown, UnknownTopic, client_error
from ocfcluster.limits import (
    PRODUCER_BYTES_UNANSWERED,
    PRODUCER_RUNS_UNANSWERED,
    RUN_BYTES,
    RUN_COUNT,
    RUN_HEADER_BYTES,
)
from ocfcluster.wire import frames
from ocfcluster.wire.frames import LOCAL_ID
from ocfcluster.wire.run import RunKind, build_run, read_header, run_events

_LENGTH_BYTES: Final = 4  # of each event in a table of lengths
PRODUCER_LOST: Final = frozenset({errno.EBADF, errno.EILSEQ})  # refusals that do not use up their numbers


class Owner(Protocol):
    """Who can wait for a receipt: the shell that the batch was published through."""

    def wait_for_receipt(self, receipt: Any, timeout: float | None) -> None: ...


class Batch:
    """Publications that become one run, and the outcome that they share.

    ``events`` is set until the run is built, ``run`` from then until the outcome is known.
    """

    __slots__ = (
        "owner", "topic", "topic_id", "re_id", "properties", "events", "count", "size", "look_at", "alone",
        "number", "run", "sends", "done", "error", "why", "_seq", "_ev_id", "_parts", "on_done",
    )  # fmt: skip

    def __init__(
        self,
        owner: Owner,
        topic: str,
        topic_id: int,
        re_id: int,
        properties: bytes,
        events: list[bytes],
        size: int,
    ) -> None:
        self.owner = owner
        self.topic = topic
        self.topic_id = topic_id
        self.re_id = re_id
        self.properties = properties
        self.events: list[bytes] | None = events
        self.count = len(events)
        self.size = size  # bytes of the run, at most
        self.look_at = 1  # at how many gathered publications to look whether the agent is ready for them
        self.alone = (self,)
        self.number = 0  # of the first publication
        self.run = b""
        self.sends = 0
        self.done = False
        self.error: ClientError | None = None
        self.why = ""  # what the agent said about a refusal, ahead of the receipt
        self._seq = self._ev_id = 0
        self._parts: list[tuple[int, int, int, int, int]] = []  # first index, count, errno, seq, ev_id
        self.on_done: list[Any] = []  # callables without arguments; for asyncio

    def joins(self, topic_id: int, re_id: int, properties: bytes, size: int) -> bool:
        """Whether a publication of ``size`` bytes can go into the same run."""
        return (
            self.topic_id == topic_id
            and self.re_id == re_id
            and self.properties == properties
            and self.size + size + _LENGTH_BYTES <= RUN_BYTES
            and self.count < RUN_COUNT
        )

    def is_of_larger_than(self, event_bytes: int) -> bool:
        """Whether it is one event, larger than ``event_bytes``, at which an agent would hang up."""
        data_bytes = self.size - RUN_HEADER_BYTES - len(self.properties) - _LENGTH_BYTES
        return self.size > RUN_BYTES and data_bytes > event_bytes

    def join(self, data: bytes) -> int:
        """Add a publication that ``joins``; its index."""
        assert self.events is not None  # noqa: S101 - it gathers
        index = self.count
        self.events.append(data)
        self.count = index + 1
        self.size += len(data) + _LENGTH_BYTES
        return index

    def answer(self, first: int, count: int, code: int, seq: int, ev_id: int) -> bool:
        """Take the outcome of ``count`` publications from number ``first`` on; whether all is answered now."""
        before = self.number - first
        if before >= 0 and before + self.count <= count:
            if code:
                self.error = _refusal(code, self.topic, self.why)
            else:
                self._seq = seq + before
                self._ev_id = ev_id + before
            self._finish()
            return True
        # A run of which a part was delivered before a reconnect is answered in parts.
        index = max(0, -before)
        skipped = max(0, before)
        taken = min(count - skipped, self.count - index)
        if all(part[0] != index for part in self._parts):
            self._parts.append((index, taken, code, seq + skipped, ev_id + skipped))
        if sum(part[1] for part in self._parts) < self.count:
            return False
        self._finish()
        return True

    def fail(self, error: ClientError) -> None:
        self.error = error
        self._parts.clear()
        self._finish()

    def _finish(self) -> None:
        self.done = True
        self.run = b""
        self.events = None
        for callback in self.on_done:
            callback()
        self.on_done.clear()

    def covers(self, index: int, count: int) -> bool:
        """Whether the outcome of these publications is known."""
        return self.done or self._part(index) is not None

    def _part(self, index: int) -> tuple[int, int, int, int, int] | None:
        for part in self._parts:
            if part[0] <= index < part[0] + part[1]:
                return part
        return None

    def outcome(self, index: int, count: int) -> tuple[int, int]:
        """seq and ev_id of the publication at ``index``. Raises the error of the first of ``count`` refused."""
        if self.error is not None:
            raise self.error
        if not self._parts:
            return self._seq + index, self._ev_id + index
        for part in sorted(self._parts):
            if part[2] and part[0] < index + count and index < part[0] + part[1]:
                raise _refusal(part[2], self.topic, self.why)
        part = self._part(index) or self._parts[0]
        return part[3] + index - part[0], part[4] + index - part[0]


def _refusal(code: int, topic: str, why: str) -> ClientError:
    if why:
        return client_error(code, f"topic {topic!r}: {why}")
    if code == errno.EINVAL:
        return UnknownTopic(f"topic {topic!r} is not known to the cluster, or was removed")
    if code == errno.EPERM:
        return client_error(code, f"publishing to topic {topic!r} is not permitted")
    if code == errno.ESRCH:
        return client_error(code, f"it was for a member that {topic!r} does not have, or not any more")
    return client_error(code, f"the publication to topic {topic!r} was refused (errno {code})")


class Producer:
    """Numbering and window of one producer. Not thread-safe: its shell's lock protects it."""

    __slots__ = (
        "id",
        "token",
        "local",
        "gathering",
        "unanswered",
        "unanswered_bytes",
        "opening",
        "closing",
        "refusal",
        "_next_number",
    )

    def __init__(self, local: bool) -> None:
        self.id = 0  # 0: not opened
        self.token = b""  # by which an agent knows it again
        self.local = local  # for topics of scope local
        self.gathering: Batch | None = None
        self.unanswered: deque[Batch] = deque()
        self.unanswered_bytes = 0
        self.opening = False
        self.closing = False  # nothing more is published; given back when all is answered
        self.refusal: ClientError | None = None  # why the last OPEN failed
        self._next_number = 1

    # --- gathering ----------------------------------------------------------------------------------------------

    def has_room(self, size: int) -> bool:
        """Whether one more run of ``size`` bytes may go out unanswered. One largest event always may, alone."""
        if not self.unanswered:
            return True
        gathering = self.gathering is not None  # it goes out before what comes now
        return (
            len(self.unanswered) + gathering < PRODUCER_RUNS_UNANSWERED
            and self.unanswered_bytes + size <= PRODUCER_BYTES_UNANSWERED
        )

    def has_room_again(self, size: int) -> bool:
        """Whether who had to wait for room may go on: there is enough for several runs, so that they go together."""
        if not self.unanswered:
            return True
        return (
            len(self.unanswered) <= PRODUCER_RUNS_UNANSWERED * 3 // 4
            and self.unanswered_bytes + size <= PRODUCER_BYTES_UNANSWERED * 3 // 4
        )

    def queue(self, batch: Batch, time_ns: int) -> None:
        """The batch is complete: it gets its numbers now, or as soon as the producer is open."""
        self.unanswered.append(batch)
        self.unanswered_bytes += batch.size
        if self.id:
            self._build(batch, time_ns)

    def close_gathering(self, time_ns: int) -> Batch | None:
        """Complete what has gathered, if anything has."""
        batch = self.gathering
        if batch is not None:
            self.gathering = None
            self.queue(batch, time_ns)
        return batch

    def give_up_gathering(self, error: ClientError) -> None:
        """What has gathered is never sent."""
        batch, self.gathering = self.gathering, None
        if batch is not None:
            batch.fail(error)

    def _build(self, batch: Batch, time_ns: int) -> None:
        events = batch.events
        if events is None:  # numbered before by a producer that was forgotten
            run = batch.run
            header = read_header(run)
            events = list(run_events(run, header))
            time_ns = header.time_ns
        batch.number = self._next_number
        batch.run = build_run(
            RunKind.PUBLICATION, batch.topic_id, self.id, batch.number, events,
            re_id=batch.re_id, time_ns=time_ns, properties=batch.properties,
        )  # fmt: skip
        batch.events = None
        self._next_number += batch.count

    # --- the producer's life ------------------------------------------------------------------------------------

    def opened(self, answer: frames.Producer, time_ns: int) -> None:
        """The cluster has given the producer an id: what waits gets its numbers."""
        self.id = answer.producer
        self.token = answer.token
        self.opening = False
        self._next_number = 1
        for batch in self.unanswered:
            if not batch.done:
                self._build(batch, time_ns)

    def abandon(self, error: ClientError) -> list[Batch]:
        """Everything unanswered fails with ``error``; the producer must be opened again."""
        batches = list(self.unanswered)
        self.unanswered.clear()
        self.unanswered_bytes = 0
        self.id = 0
        for batch in batches:
            batch.fail(error)
        return batches

    def forgotten(self) -> None:
        """The cluster does not know the producer (any more).

        What was sent on this connection alone cannot have been taken before, so it goes out again under a new
        producer; of what was sent before nobody can say what became of it.
        """
        self._begin_anew(1, "the cluster has forgotten the producer while publications were unanswered")

    def agent_ended(self) -> None:
        """The agent has ended that alone knew the producer. What was never sent goes out under a new one."""
        self._begin_anew(0, "the agent that had the local publications was restarted")

    def _begin_anew(self, sends: int, why: str) -> None:
        """What was sent oftener than ``sends`` fails: nobody knows its outcome. The rest is for a new producer."""
        self.id = 0
        unanswered = self.unanswered
        while unanswered and unanswered[0].sends > sends:  # what came later was not sent oftener
            batch = unanswered.popleft()
            self.unanswered_bytes -= batch.size
            if not batch.done:
                batch.fail(OutcomeUnknown(why))
        for batch in unanswered:
            batch.sends = 0

    def is_of_agent(self) -> bool:
        """Whether the id ends with the agent's incarnation."""
        return bool(self.id & LOCAL_ID)

    # --- answers ------------------------------------------------------------------------------------------------

    def explained(self, first: int, why: str) -> None:
        """Take the reason of a refusal whose receipt is still to come."""
        for batch in self.unanswered:
            if batch.number == first and not batch.done:
                batch.why = why

    def answered(self, first: int, count: int, code: int, seq: int, ev_id: int) -> bool:
        """Take one receipt. Returns whether a batch was finished by it; repeated receipts are ignored."""
        unanswered = self.unanswered
        end = first + count
        finished = False
        for batch in unanswered:
            if batch.number >= end:
                break
            if batch.number and batch.number + batch.count > first and not batch.done:
                finished |= batch.answer(first, count, code, seq, ev_id)
        while unanswered and unanswered[0].done:
            self.unanswered_bytes -= unanswered.popleft().size
        return finished


def change_events(batch: Batch, change: Callable[[bytes], bytes]) -> None:
    """Each event of a numbered batch is what ``change`` makes of it, of the same length; its numbers stay."""
    header = read_header(batch.run)
    before = list(run_events(batch.run, header))
    events = list(map(change, before))
    if events != before:
        batch.run = build_run(
            RunKind.PUBLICATION, batch.topic_id, header.producer, batch.number, events,
            re_id=batch.re_id, time_ns=header.time_ns, properties=batch.properties,
        )  # fmt: skip


def partly(error: ClientError, published: int, count: int) -> ClientError:
    """``error``, which came when ``published`` of the ``count`` events of one call were on their way."""
    return type(error)(f"{error.strerror}; {published} of {count} were published")


def run_size(count: int, data_bytes: int, properties: bytes) -> int:
    """Bytes of a run, with a table of lengths."""
    return RUN_HEADER_BYTES + len(properties) + _LENGTH_BYTES * count + data_bytes


Cut = tuple[int, int, int]  # begin and end among the events, bytes of the run


def largest_of(datas: Sequence[bytes], cuts: Iterable[Cut], event_bytes: int) -> int:
    """Bytes of the largest event, where one may be larger than ``event_bytes``; else 0, without a look at each."""
    longer = [max(map(len, datas[begin:end])) for begin, end, size in cuts if size > event_bytes]
    return max(longer, default=0)


def split(datas: Sequence[bytes], properties: bytes) -> list[Cut]:
    """Cut ``datas`` into runs of at most RUN_BYTES and RUN_COUNT.

    An event too large for that is alone in its run. Costs no Python step per event.
    """
    room = RUN_BYTES - RUN_HEADER_BYTES - len(properties)
    lengths = list(map(len, datas))
    total = len(lengths)
    length = lengths[0]
    cuts: list[Cut] = []
    if lengths.count(length) == total:
        each = RUN_COUNT if not length else min(RUN_COUNT, max(1, room // length))
        for begin in range(0, total, each):
            end = min(begin + each, total)
            cuts.append((begin, end, run_size(0, (end - begin) * length, properties)))
        return cuts
    ends = list(accumulate((one + _LENGTH_BYTES for one in lengths), initial=0))
    begin = 0
    while begin < total:
        end = bisect_right(ends, ends[begin] + room, begin + 1) - 1
        end = min(max(end, begin + 1), begin + RUN_COUNT)
        cuts.append((begin, end, run_size(0, ends[end] - ends[begin], properties)))
        begin = end
    return cuts
