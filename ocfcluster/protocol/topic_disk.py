"""The topic table on disk: what is staged in the order that runs are *held*, before they are delivered.

A member acknowledges past a topic change only after the table with that change is on its disk, so a committed change
is on the disks of a commit quorum.
"""

from __future__ import annotations

from collections import deque

from ocfcluster.errors import MalformedRun
from ocfcluster.protocol.settings import Limits
from ocfcluster.protocol.state import TopicTable
from ocfcluster.protocol.store import NO_LIMIT, Store
from ocfcluster.wire import control
from ocfcluster.wire.run import RunHeader, read_header


class TopicDisk:
    """Stages topic changes in the node's record, and says how far may be acknowledged."""

    __slots__ = ("pending", "_store", "_table", "_changes", "_unwritten", "_borrowed", "_ended")

    def __init__(self, store: Store, table: TopicTable) -> None:
        """``table``: what is on disk already, or in ``store`` on its way there."""
        self._store = store
        self.pending = False  # something is staged that is not in the record
        self._borrowed = False  # the table came with a snapshot
        self._ended = False  # the record is another history's
        self._table = TopicTable.of(table.rows, table.next_id)
        self._changes: deque[int] = deque()  # indexes of changes that commit does not cover yet
        self._unwritten: deque[tuple[int, int]] = (
            deque()
        )  # (index, version of the record) of what is not on disk

    def stage(self, index: int, run: bytes, bounds: Limits) -> None:
        """A topic command was held at ``index``."""
        header: RunHeader = read_header(run)
        try:
            operand = control.read_operand(run, header)
        except MalformedRun:
            return
        _, _, change = self._table.apply(operand, bounds)
        if change is not None:
            self._changes.append(index)
            self._unwritten.append((index, NO_LIMIT))
            self.pending = True

    def require(self, index: int) -> None:
        """The table came with the order up to ``index``, which is not to be acknowledged before it is on disk."""
        self._unwritten.append((index, NO_LIMIT))
        self.pending = self._borrowed = True

    def flush(self, everything: bool) -> None:
        """Put what was staged into the record: once for many changes that came together.

        ``everything``: all that is committed is staged. A table that came with a snapshot waits for that: what this
        node's disk has from before may be newer, and must not go while others count on it."""
        if not self.pending or self._ended or (self._borrowed and not everything):
            return
        table, record, unwritten = self._table, self._store.record, self._unwritten
        version = self._store.version
        # Also where the changes have cancelled each other: who has the first of them only says that it is further.
        newer = record.topics_index < unwritten[-1][0]
        self.pending = self._borrowed = False
        if newer or (table.rows, table.next_id) != (record.topics, record.next_topic_id):
            version = self._store.change(
                topics=table.rows, next_topic_id=table.next_id, topics_index=unwritten[-1][0]
            )
        self._unwritten = deque((index, min(known, version)) for index, known in unwritten)

    def end(self) -> None:
        """The history has ended: what is staged is of no use to the next one."""
        self._ended = True

    @property
    def limit(self) -> int:
        """The highest index that may be acknowledged."""
        unwritten = self._unwritten
        if unwritten:
            durable = self._store.durable
            while unwritten and unwritten[0][1] <= durable:
                unwritten.popleft()
        return unwritten[0][0] - 1 if unwritten else NO_LIMIT

    def before_uncommitted(self, commit: int) -> int:
        """The index before the first change that ``commit`` does not cover: where the short cut stops."""
        changes = self._changes
        while changes and changes[0] <= commit:
            changes.popleft()
        return changes[0] - 1 if changes else NO_LIMIT
