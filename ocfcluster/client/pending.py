"""A request on its way: asked by whoever holds it, answered by the session."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ocfcluster.errors import ClientError
from ocfcluster.wire import frames
from ocfcluster.wire.frames import Request

if TYPE_CHECKING:
    from ocfcluster.client.subscription_state import SubscriptionState


class Pending:
    """A request and, once ``done``, its answer or error."""

    __slots__ = (
        "kind", "body", "subscription", "done", "answer", "error", "on_done", "frame", "withdrawn",
    )  # fmt: skip

    def __init__(
        self, kind: Request, body: frames.Body | None, subscription: SubscriptionState | None
    ) -> None:
        self.kind = kind
        self.body = body
        self.subscription = subscription  # of SUBSCRIBE: whose socket is lent with it
        self.done = False
        self.answer: frames.Body | None = None
        self.error: ClientError | None = None
        self.on_done: list[Callable[[], None]] = []
        self.frame = b""  # as it was sent last
        self.withdrawn = False  # nobody waits for the answer any more

    def finish(self, answer: frames.Body | None, error: ClientError | None) -> None:
        self.done = True
        self.answer = answer
        self.error = error
        for callback in self.on_done:
            callback()
        self.on_done.clear()

    def result(self) -> Any:
        """The answer's body (None for DONE). Raises its error."""
        if self.error is not None:
            raise self.error
        return self.answer
