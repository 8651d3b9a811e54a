"""What a check has at hand: the agent under test, topics of its own, and ways to say what must hold."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import select
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import ocfcluster
from ocfcluster.client import Client, Subscription
from ocfcluster.client.events import Event
from ocfcluster.errors import ClientError

PATIENCE_S = 10.0  # for what must come
PATIENCE_MS = int(PATIENCE_S * 1000)
QUIET_S = 0.15  # in which nothing may come
Anything = TypeVar("Anything")


class Violation(Exception):
    """An obligation does not hold; the message says what was seen instead."""


class NotRun(Exception):
    """The check needs something that this run does not have; the message says what."""


class Agent(Protocol):
    """An agent whose life a check controls."""

    socket: str

    def stop(self) -> None:
        """Ends it in order (SIGTERM) and waits for its end."""

    def kill(self) -> None:
        """Ends it at once (SIGKILL)."""

    def restart(self) -> None:
        """Starts it again with the same configuration, once it has ended; returns when it serves clients."""


class Cluster(Protocol):
    """A cluster whose agents a check controls; its nodes are numbered from 1."""

    def socket(self, i: int) -> str: ...
    def kill(self, i: int) -> None:
        """Ends node ``i``'s agent at once (SIGKILL)."""

    def start(self, i: int) -> None:
        """Starts it again, with what it has on its disk."""

    def pause(self, i: int) -> None:
        """Stops it where it is (SIGSTOP)."""

    def go_on(self, i: int) -> None:
        """Lets it go on (SIGCONT)."""


class Harness(Protocol):
    """What can start agents for the checks that end them. Absent outside of the project's own tests."""

    def new_agent(self) -> contextlib.AbstractContextManager[Agent]:
        """A fresh agent of a single-node cluster, serving clients; ended when the context is left."""

    def new_cluster(
        self, nodes: int, suspicion_ms: int, components: Mapping[str, str] | None = None
    ) -> contextlib.AbstractContextManager[Cluster]:
        """A fresh cluster of so many nodes, all active; ended when the context is left. ``components`` is that section
        of the agents' configuration."""


class Context:
    """Handed to each check. Topics made through it are removed at its end."""

    __slots__ = ("_clients", "_harness", "_topics", "others", "socket")

    def __init__(self, socket: str, others: tuple[str, ...] = (), harness: Harness | None = None) -> None:
        self.socket = socket
        self.others = others
        self._harness = harness
        self._topics: list[str] = []
        self._clients: list[Client] = []

    def __enter__(self) -> Self:
        os.environ["OCFCLUSTER_SOCKET"] = self.socket  # where the OCF API's process-wide client goes
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(ClientError):
            client = self.client()
            for name in self._topics:
                with contextlib.suppress(ClientError):
                    client.remove_topic(name)
        for client in self._clients:
            with contextlib.suppress(ClientError):
                client.close()

    def client(self, socket: str | None = None, *, resume: bool = False) -> Client:
        """A new connected client, of the agent under test unless told otherwise."""
        client = ocfcluster.connect(
            socket or self.socket, name="conformance", resume=resume, timeout=PATIENCE_S
        )
        self._clients.append(client)
        return client

    def new_name(self) -> str:
        """A topic name that nobody uses; removed at the end if a topic has come of it."""
        name = f"conformance-{secrets.token_hex(6)}"
        self._topics.append(name)
        return name

    def topic(self, scope: str = "global") -> str:
        """The name of a fresh topic."""
        name = self.new_name()
        self.client().create_topic(name, scope=scope)
        return name

    def other_sockets(self) -> tuple[str, ...]:
        """Agents of other nodes of the same cluster, at least one. Raises NotRun."""
        if not self.others:
            raise NotRun("needs agents of several nodes of one cluster (--other)")
        return self.others

    def own_agent(self) -> contextlib.AbstractContextManager[Agent]:
        """An agent that the check may end. Raises NotRun."""
        if self._harness is None:
            raise NotRun("needs an agent of its own, to end it")
        return self._harness.new_agent()

    def own_cluster(
        self, nodes: int, suspicion_ms: int, components: Mapping[str, str] | None = None
    ) -> contextlib.AbstractContextManager[Cluster]:
        """A cluster whose agents the check may end; who is silent for ``suspicion_ms`` is suspected. ``components``
        says which of its components are external. Raises NotRun."""
        if self._harness is None:
            raise NotRun("needs a cluster of its own, to end agents of it")
        return self._harness.new_cluster(nodes, suspicion_ms, components)


def expect(condition: object, statement: str) -> None:
    """Raises Violation with ``statement``, which says what was seen instead, unless ``condition``."""
    if not condition:
        raise Violation(statement)


def expect_equal(seen: object, expected: object, what: str) -> None:
    """Raises Violation unless ``seen`` equals ``expected``."""
    if seen != expected:
        raise Violation(f"{what}: {_short(seen)} instead of {_short(expected)}")


def expect_errno(code: int, what: str, call: Callable[..., Any], *arguments: Any, **named: Any) -> OSError:
    """Raises Violation unless ``call`` raises an OSError with the errno ``code``; gives that error."""
    try:
        result = call(*arguments, **named)
    except OSError as error:
        expect_equal(errno.errorcode.get(error.errno or 0), errno.errorcode[code], f"errno of {what}")
        return error
    raise Violation(f"{what} gave {_short(result)} instead of {errno.errorcode[code]}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:80]} … {text[-30:]}"


def must(value: Anything | None, what: str) -> Anything:
    """``value``, which must not be None."""
    if value is None:
        raise Violation(f"{what} did not come")
    return value


def take(subscription: Subscription, count: int) -> list[Event]:
    """The next ``count`` events of a subscription of the Pythonic API; notices are violations here."""
    events = []
    for number in range(count):
        event = must(subscription.get(timeout=PATIENCE_S), f"event {number + 1} of {count}")
        expect(event.notice is None, f"a notice came instead of event {number + 1}: {event.notice}")
        events.append(event)
    return events


def readable(descriptor: int, within_s: float = 0.0) -> bool:
    """Whether poll calls the descriptor readable within the time."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return any(happened & select.POLLIN for _, happened in poll.poll(within_s * 1000))


def settles(condition: Callable[[], bool], within_s: float = PATIENCE_S) -> bool:
    """Whether ``condition`` becomes true within the time."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


class Background:
    """A call in a thread of its own, whose result or error is fetched later."""

    __slots__ = ("_error", "_result", "_thread")

    def __init__(self, call: Callable[..., Any], *arguments: Any, **named: Any) -> None:
        self._result: Any = None
        self._error: BaseException | None = None

        def body() -> None:
            try:
                self._result = call(*arguments, **named)
            except Exception as error:  # noqa: BLE001 - handed to whoever asks for the result
                self._error = error

        self._thread = threading.Thread(target=body, daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def result(self, what: str, within_s: float = PATIENCE_S) -> Any:
        """What the call gave or raised. Raises Violation where it still runs after the time."""
        self._thread.join(within_s)
        if self._thread.is_alive():
            raise Violation(f"{what} did not return within {within_s:g} s")
        if self._error is not None:
            raise self._error
        return self._result


@contextlib.contextmanager
def running(call: Callable[[], Any]) -> Iterator[Background]:
    """``call`` in the background while the block runs; what it raised is raised at the end."""
    task = Background(call)
    yield task
    task.result("a call in the background")
