"""One client's control connection, sans-IO: bytes in give requests, answers give bytes out, both bounded.

Contract with the caller:

- ``receive`` what the socket gave, with the descriptors that came beside it; then work off ``requests`` in order.
- After a MalformedFrame write what ``output`` holds (``fail`` put the reason there) and close.
- ``answer`` each request once, by its id; write ``output`` when the burst is over, tell ``sent`` how much went.
- When ``overflowed``, the client does not read its answers: close.
"""

from __future__ import annotations

import errno
from collections import deque
from enum import Enum
from itertools import islice
from typing import Final, NamedTuple

from ocfcluster.errors import MalformedFrame
from ocfcluster.limits import (
    CONTROL_FRAME_BYTES,
    CONTROL_OUTPUT_BYTES,
    LENT_SOCKETS_UNANSWERED,
    PROPERTIES_BYTES,
    REQUESTS_UNANSWERED,
    RUN_BYTES,
    RUN_HEADER_BYTES,
)
from ocfcluster.wire.frames import (
    CONTROL_HEADER,
    RECEIPT,
    Answer,
    Body,
    Error,
    Hello,
    Request,
    control_frame,
    read_body,
)

Buffer = bytes | bytearray | memoryview

NO_DESCRIPTOR: Final = -1  # in the place of one that was lent, and did not arrive
HEADER_BYTES: Final = CONTROL_HEADER.size
RECEIPTS_PER_FRAME: Final = 4096
_LENGTH_ENTRY_BYTES: Final = 4  # a run of one event may come with a table of one length
_KINDS: Final = frozenset(int(kind) for kind in Request)
_PUBLISH: Final = int(Request.PUBLISH)
_HELLO: Final = int(Request.HELLO)
_SUBSCRIBE: Final = int(Request.SUBSCRIBE)
_UNANSWERED: Final = frozenset({int(Request.GOODBYE), int(Request.RESUME_PRODUCER)})
# With request id 0:
_UNASKED: Final = (Answer.FULL, Answer.SHUTDOWN, Answer.LEFT_OUT, Answer.REFUSED, Answer.PRODUCER)


class Incoming(NamedTuple):
    """One request that is no publication. ``body`` is undecoded."""

    kind: int
    request_id: int
    body: bytes
    descriptor: int  # lent with SUBSCRIBE, else NO_DESCRIPTOR; who takes the request off the queue owns it


class Stage(Enum):
    GREETING = "greeting"  # nothing but HELLO is taken
    OPEN = "open"
    FAILED = "failed"  # malformed or overflowed: write the output, then close


class Session:
    """The state of one control connection."""

    __slots__ = (
        "stage", "requests", "event_bytes", "unanswered", "output_bytes", "overflowed",
        "_lent", "_descriptors", "_partial", "_output", "_receipts", "_run_bytes", "_lending",
    )  # fmt: skip

    def __init__(self, event_bytes: int) -> None:
        self.stage = Stage.GREETING
        # In the order of the connection. A publication is its run: on the hot path nothing is put around it.
        self.requests: deque[Incoming | bytes] = deque()
        self.event_bytes = event_bytes
        self.unanswered = 0  # requests taken in and not answered yet, publications not counted
        self.output_bytes = 0
        self.overflowed = False
        self._run_bytes = max(
            RUN_BYTES, event_bytes + RUN_HEADER_BYTES + _LENGTH_ENTRY_BYTES + PROPERTIES_BYTES
        )
        self._lending: set[int] = set()  # ids of SUBSCRIBE requests not answered yet
        self._lent = 0
        self._descriptors: deque[int] = deque()
        self._partial = bytearray()
        self._output: deque[bytes] = deque()
        self._receipts: list[bytes] = []

    # --- in ---------------------------------------------------------------------------------------------------

    def receive(self, data: Buffer, descriptors: list[int] | None = None) -> None:
        """Take in what one read gave. Raises MalformedFrame; the session has then failed and says why in its output.

        Descriptors are the session's from here on, until ``requests`` or ``abandoned_descriptors`` hands them out.
        """
        if descriptors:
            self._descriptors.extend(descriptors)
        if self.stage is Stage.FAILED:
            return
        try:
            self._parse(data)
            if len(self._descriptors) > (1 if self._partial else 0):
                raise MalformedFrame("a descriptor came that no SUBSCRIBE lends")
        except MalformedFrame as error:
            self.fail(errno.EPROTO, str(error))
            raise

    def _parse(self, data: Buffer) -> None:
        view = memoryview(data)
        at = 0
        if self._partial:
            at = self._complete(view)
            if at < 0:
                return
        end = len(view)
        unpack = CONTROL_HEADER.unpack_from
        take_run = self.requests.append
        run_bytes = self._run_bytes
        while end - at >= HEADER_BYTES:
            length, kind, zero, zeros, request_id = unpack(view, at)
            plain = kind == _PUBLISH and length <= run_bytes and not zero and not zeros
            if not plain or self.stage is not Stage.OPEN:
                self._check_header(length, kind, zero or zeros)
            body_at = at + HEADER_BYTES
            at = body_at + length
            if at > end:
                self._partial += view[body_at - HEADER_BYTES :]
                return
            if kind == _PUBLISH:
                take_run(bytes(view[body_at:at]))
            else:
                self._take(kind, request_id, bytes(view[body_at:at]))
        self._partial += view[at:]

    def _complete(self, view: memoryview) -> int:
        """Finish the partial frame from ``view``; the offset behind what was used, or -1 if it is still partial."""
        partial = self._partial
        at = 0
        if len(partial) < HEADER_BYTES:
            at = min(HEADER_BYTES - len(partial), len(view))
            partial += view[:at]
            if len(partial) < HEADER_BYTES:
                return -1
        length, kind, zero, zeros, request_id = CONTROL_HEADER.unpack_from(partial)
        self._check_header(length, kind, zero or zeros)
        until: int = at + HEADER_BYTES + length - len(partial)
        partial += view[at:until]
        if until > len(view):
            return -1
        with memoryview(partial) as whole:
            body = bytes(whole[HEADER_BYTES:])
        self._partial = bytearray()
        self._take(kind, request_id, body)
        return until

    def _check_header(self, length: int, kind: int, zeros: int) -> None:
        if kind == _PUBLISH and self.stage is Stage.OPEN and not zeros:
            if length > self._run_bytes:
                raise MalformedFrame(
                    f"a publication of {length} bytes; at most {self._run_bytes} are allowed"
                )
            return
        if kind not in _KINDS or zeros:
            raise MalformedFrame(f"a frame of kind {kind} is no request of this version")
        if length > CONTROL_FRAME_BYTES:
            raise MalformedFrame(f"a request of {length} bytes; at most {CONTROL_FRAME_BYTES} are allowed")
        if self.stage is Stage.GREETING and kind != _HELLO:
            raise MalformedFrame("HELLO comes first on a connection")

    def _take(self, kind: int, request_id: int, body: bytes) -> None:
        if kind == _PUBLISH:
            self.requests.append(body)
            return
        descriptor = NO_DESCRIPTOR
        if kind == _HELLO:
            if self.stage is not Stage.GREETING:
                raise MalformedFrame("HELLO comes once on a connection")
            self.stage = Stage.OPEN
        elif kind == _SUBSCRIBE:
            if not self._descriptors:
                raise MalformedFrame("SUBSCRIBE came without the descriptor that it lends")
            descriptor = self._descriptors.popleft()
        if kind not in _UNANSWERED:
            self.unanswered += 1
            if kind == _SUBSCRIBE:
                self._lending.add(request_id)
                self._lent += 1
        self.requests.append(Incoming(kind, request_id, body, descriptor))

    def admits(self, request: Incoming) -> bool:
        """Whether ``request`` is within the bounds of unanswered ones; if not it is to be answered with ENOMEM."""
        if request.kind in _UNANSWERED:
            return True
        if request.kind == _SUBSCRIBE and self._lent > LENT_SOCKETS_UNANSWERED:
            return False
        return self.unanswered <= REQUESTS_UNANSWERED

    def hello(self, request: Incoming) -> Hello:
        """The decoded greeting. Raises MalformedFrame."""
        body = read_body(request.kind, request.body)
        if not isinstance(body, Hello):
            raise MalformedFrame("HELLO carries another body")
        return body

    def abandoned_descriptors(self) -> list[int]:
        """Descriptors received and not handed out, for the caller to close when the connection ends."""
        abandoned = [descriptor for descriptor in self._descriptors if descriptor != NO_DESCRIPTOR]
        abandoned += [r.descriptor for r in self.requests if isinstance(r, Incoming) and r.descriptor >= 0]
        self._descriptors.clear()
        self.requests.clear()
        return abandoned

    # --- out --------------------------------------------------------------------------------------------------

    def answer(self, request_id: int, kind: int, body: Body | None = None) -> None:
        """Answer request ``request_id``; 0 for what was not asked for."""
        if request_id or kind not in _UNASKED:
            self.unanswered -= 1
            if request_id in self._lending:
                self._lending.discard(request_id)
                self._lent -= 1
        self._put(control_frame(kind, request_id, body))

    def refuse(self, request_id: int, code: int, message: str) -> None:
        self.answer(request_id, Answer.ERROR, Error(code, message))

    def fail(self, code: int, message: str) -> None:
        """The connection ends: ``message`` is the last the client gets."""
        self.stage = Stage.FAILED
        self._put(control_frame(Answer.ERROR, 0, Error(code, message)))

    def receipt(self, producer: int, first_number: int, count: int, error: int, seq: int, ev_id: int) -> None:
        """Tell what became of ``count`` publications; goes out with the others of the burst in one frame."""
        self._receipts.append(RECEIPT.pack(producer, first_number, count, error, seq, ev_id))
        self.output_bytes += RECEIPT.size
        if self.output_bytes > CONTROL_OUTPUT_BYTES:
            self.overflowed = True

    def _put(self, frame: bytes) -> None:
        if self._receipts:
            self._gather_receipts()
        self._output.append(frame)
        self.output_bytes += len(frame)
        if self.output_bytes > CONTROL_OUTPUT_BYTES:
            self.overflowed = True

    def _gather_receipts(self) -> None:
        receipts = self._receipts
        for at in range(0, len(receipts), RECEIPTS_PER_FRAME):
            body = b"".join(receipts[at : at + RECEIPTS_PER_FRAME])
            self._output.append(CONTROL_HEADER.pack(len(body), Answer.RECEIPTS, 0, 0, 0) + body)
            self.output_bytes += HEADER_BYTES
        receipts.clear()

    def output(self, most: int = 64) -> list[bytes]:
        """Up to ``most`` buffers to write next, in order; empty when there is nothing to say."""
        if self._receipts:
            self._gather_receipts()
        return list(islice(self._output, most))

    def sent(self, size: int) -> None:
        """``size`` bytes of ``output`` were written."""
        self.output_bytes -= size
        output = self._output
        while size:
            first = output[0]
            if len(first) > size:
                output[0] = first[size:]
                return
            size -= len(first)
            output.popleft()
