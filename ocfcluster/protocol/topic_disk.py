"""The topic table on disk: what is staged in the order that runs are *held*, before they are delivered.

A member acknowledges past a topic change only after the table with that change is on its disk, so a committed change
is on the disks of a commit quorum.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

import msgspec

from ocfcluster import limits
from ocfcluster.errors import MalformedRun
from ocfcluster.protocol.effects import Effect, Persist
from ocfcluster.protocol.settings import Configuration, Limits, Record, TopicRow
from ocfcluster.protocol.state import PRE_CREATED, TopicTable
from ocfcluster.wire import control
from ocfcluster.wire.run import RunHeader, read_header

NO_LIMIT = 2**63 - 1


class TopicDisk:
    """Stages topic changes, has the table written (one write at a time), and says how far may be acknowledged."""

    __slots__ = (
        "_configuration",
        "_table",
        "_inherited",
        "_changes",
        "_unwritten",
        "_writing",
        "_token",
        "_retry_at",
        "failures",
    )

    def __init__(
        self, configuration: Configuration, token: Callable[[], int], inherited: Iterable[TopicRow] = ()
    ) -> None:
        """``inherited``: topics of the history before, which are being created again in this one. Until each is,
        the disk keeps it: a power cut in between must not lose what has not had its turn."""
        self._configuration = configuration
        self._table = TopicTable()
        self._inherited = {name: (topic_id, name, local) for topic_id, name, local in inherited}
        self._changes: deque[int] = deque()  # indexes of changes that commit does not cover yet
        self._unwritten: deque[int] = deque()  # indexes of changes that are not on disk
        self._writing: tuple[int, int] | None = None  # (token, index) of the write under way
        self._token = token
        self._retry_at = 0
        self.failures = 0

    def stage(self, index: int, run: bytes, bounds: Limits) -> None:
        """A topic command was held at ``index``."""
        header: RunHeader = read_header(run)
        try:
            operand = control.read_operand(run, header)
        except MalformedRun:
            return
        _, _, change = self._table.apply(operand, bounds)
        if change is not None:
            self._inherited.pop(change.topic.name, None)
            self._changes.append(index)
            self._unwritten.append(index)

    @property
    def limit(self) -> int:
        """The highest index that may be acknowledged."""
        return self._unwritten[0] - 1 if self._unwritten else NO_LIMIT

    def before_uncommitted(self, commit: int) -> int:
        """The index before the first change that ``commit`` does not cover: where the short cut stops."""
        changes = self._changes
        while changes and changes[0] <= commit:
            changes.popleft()
        return changes[0] - 1 if changes else NO_LIMIT

    def write(self, effects: list[Effect], now: int) -> None:
        """Have the table written where it changed."""
        if self._unwritten and self._writing is None and now >= self._retry_at:
            index = self._unwritten[-1]
            token = self._token()
            self._writing = (token, index)
            effects.append(Persist(token, msgspec.msgpack.encode(self._record(index))))

    def _record(self, index: int) -> Record:
        table = self._table
        rows = [(one.topic_id, one.name, one.local) for one in table.by_id.values() if one not in PRE_CREATED]
        return Record(self._configuration, [*rows, *self._inherited.values()], table.next_id, index)

    def next_timer(self) -> int:
        return self._retry_at if self._unwritten and self._writing is None else NO_LIMIT

    def written(self, token: int, ok: bool, now: int) -> bool:
        """The answer to a Persist; False where it was not this one's."""
        if self._writing is None or self._writing[0] != token:
            return False
        index = self._writing[1]
        self._writing = None
        if ok:
            while self._unwritten and self._unwritten[0] <= index:
                self._unwritten.popleft()
        else:
            self.failures += 1
            self._retry_at = now + limits.PERSIST_RETRY_NS
        return True
