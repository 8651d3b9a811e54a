"""What publishers are told, compared with what was delivered."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from ocfcluster.errors import MalformedRun
from ocfcluster.protocol.effects import Delivery, Outcome
from ocfcluster.simulator.history import History, Place, Publication, content, shown
from ocfcluster.simulator.trace import Violation
from ocfcluster.wire.run import RunKind, check_run, run_events, verify_checksum

if TYPE_CHECKING:
    from ocfcluster.simulator.shell import Shell
    from ocfcluster.simulator.world import World

HONEST_REFUSALS: Final = (
    errno.EINVAL,
    errno.EPERM,
    errno.ESRCH,  # a message for a member that has left
)  # what a correct publisher may be told of one publication


class Receipts:
    """Publications of all histories, and their answers."""

    __slots__ = ("_agreed", "_world", "confirmed", "latencies", "withdrawn")

    def __init__(self, world: World, agreed: bool) -> None:
        self._world = world
        self._agreed = agreed
        self.confirmed = 0
        self.withdrawn = 0  # confirmed by a node whose delivery did not stand (agreed delivery only)
        self.latencies: list[int] = []  # ns from a publication to its receipt

    # --- deliveries ---------------------------------------------------------------------------------------------

    def identify(self, shell: Shell, history: History, item: Delivery, place: Place) -> None:
        """Is the run what was published? The first node to deliver it is asked. Raises Violation."""
        try:
            header = check_run(item.run)
        except MalformedRun as error:
            raise Violation("creation", f"node {shell.node_id} delivers a malformed run: {error}") from None
        if (
            header.kind != RunKind.PUBLICATION
            or header.topic_id != item.topic_id
            or header.count != item.count
        ):
            raise Violation("creation", f"{shown(item)} does not say what its run says: {header}")
        if not verify_checksum(item.run):
            raise Violation("creation", f"the checksum of {shown(item)} is wrong")
        if not 0 <= item.skip < item.count:
            raise Violation("numbers", f"{shown(item)} skips {item.skip} of {item.count}")
        for at, data in enumerate(run_events(item.run, header)):
            if at < item.skip:
                continue
            number = header.first_number + at
            publication = history.publications.get((header.producer, number))
            if publication is None or publication.data_digest != content(item.topic_id, data):
                raise Violation("creation", f"{shown(item)}: number {number} was never published like this")
            if (
                publication.topic_id != item.topic_id
                or publication.origin != item.node_id
                or publication.void
            ):
                raise Violation("creation", f"{shown(item)}: number {number} was published otherwise")
            seq, ev_id = item.seq + at - item.skip, item.ev_id + at - item.skip
            if publication.claimed not in (None, (seq, ev_id)) and not self._agreed:
                raise Violation(
                    "receipts", f"{shown(item)}: number {number} was confirmed as {publication.claimed}"
                )
            if publication.place is not None and not self._agreed:
                raise Violation("exactly once", f"{shown(item)}: number {number} was delivered before")
            publication.place = place
            publication.seq = seq
            publication.ev_id = ev_id

    def withdraw(self, history: History, item: Delivery, place: Place) -> None:
        """A delivery does not stand: the others went on without it (agreed delivery)."""
        header = check_run(item.run)
        for number in range(header.first_number + item.skip, header.first_number + item.count):
            publication = history.publications[header.producer, number]
            if publication.place == place:
                publication.place = None
                publication.judged = False
                self.withdrawn += publication.receipted

    # --- answers ------------------------------------------------------------------------------------------------

    def check(self, shell: Shell, item: Outcome) -> None:
        """A node answers what was published there. Raises Violation."""
        world = self._world
        answer = f"error {item.error}" if item.error else f"seq {item.seq} value {item.value}"
        world.trace.add(
            world.now,
            shell.node_id,
            "outcome",
            f"producer {item.producer} number {item.first_number} count {item.count} {answer}",
        )
        if item.kind not in (RunKind.PUBLICATION, RunKind.VOID) or shell.cursor is None:
            return
        history = shell.cursor.history
        for at in range(item.count):
            number = item.first_number + at
            publication = history.publications.get((item.producer, number))
            if publication is None:
                if not item.error:
                    raise Violation(
                        "receipts", f"node {shell.node_id} confirms {item}: number {number} is unknown"
                    )
                continue
            if publication.origin != shell.node_id:
                if item.error == errno.EBADF:
                    continue  # a rogue's, under a producer that it does not have
                raise Violation(
                    "receipts", f"node {shell.node_id} answers another node's publication: {item}"
                )
            if item.error:
                self._check_refusal(shell, item, number, publication)
            else:
                self._check_receipt(shell, item, at, publication)

    def _check_refusal(self, shell: Shell, item: Outcome, number: int, publication: Publication) -> None:
        if item.error == errno.EBADF and (publication.receipted or publication.error):
            return  # a repeat that came behind its producer's end, of what was answered long ago
        if item.error in (errno.EILSEQ, errno.EBADF) and self._agreed:
            return  # what came before it was confirmed by a node whose delivery did not stand
        if publication.place is not None and not (self._agreed and not publication.judged):
            raise Violation("receipts", f"number {number} is refused and was delivered: {item}")
        if publication.void and item.error != publication.void:
            raise Violation("receipts", f"number {number} was void with {publication.void}: {item}")
        if item.error not in HONEST_REFUSALS:
            raise Violation(
                "receipts", f"node {shell.node_id} refuses number {number} of an honest publisher: {item}"
            )
        publication.error = item.error

    def _check_receipt(self, shell: Shell, item: Outcome, at: int, publication: Publication) -> None:
        number = item.first_number + at
        cursor = shell.cursor
        if cursor is None:
            return
        told = item.seq + at, item.ev_id + at
        if cursor.beyond:
            publication.claimed_beyond = (
                told  # it delivered what the others did not, and is compared with nobody
            )
        elif publication.place is None:
            # A node that joined may answer from what it was given, before any other was seen to deliver it.
            if not cursor.history.is_open_before(cursor.segment.epoch):
                raise Violation(
                    "receipts",
                    f"node {shell.node_id} confirms number {number}, which nobody delivered: {item}",
                )
            if publication.claimed not in (None, told):
                raise Violation("receipts", f"number {number} was confirmed as {publication.claimed}: {item}")
            publication.claimed = told
        elif publication.place >= cursor.place:
            raise Violation(
                "receipts",
                f"node {shell.node_id} confirms number {number} before it delivered it itself: {item}",
            )
        elif (publication.seq, publication.ev_id) != told:
            raise Violation(
                "receipts",
                f"number {number} was delivered as seq {publication.seq}, ev_id {publication.ev_id}: {item}",
            )
        if publication.error:
            raise Violation("receipts", f"number {number} was refused with {publication.error}: {item}")
        if not publication.receipted:
            publication.receipted = True
            self.confirmed += 1
            self.latencies.append(self._world.now - publication.published_at)
