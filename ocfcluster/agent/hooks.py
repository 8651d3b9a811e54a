"""The hook: a command, a local topic, or both, told when this node becomes part of the primary, is not any more, or is
evicted. For what must follow outside the cluster: fencing, stopping and restarting services.

The command runs once at a time and never holds up the loop. While it runs, what comes waits: an eviction always, of the
other states the newest. It lives as long as the process, over all incarnations of the node.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import structlog

from ocfcluster.agent.config import Hooks as HooksSection
from ocfcluster.agent.local import LocalTopics
from ocfcluster.errors import SetupError
from ocfcluster.protocol.effects import Notification, NotificationCode, Topic
from ocfcluster.wire.run import RunHeader, RunKind, build_run, check_run

if TYPE_CHECKING:
    from ocfcluster.agent.daemon import Agent

NodeState = Literal["primary", "not_primary", "evicted"]

# All that a command finds in its environment beside OCFCLUSTER_...: nothing of the agent's own.
ENVIRONMENT: Final = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
}

log = structlog.get_logger("ocfcluster.agent")


class Told(NamedTuple):
    """What a hook is told. As JSON on standard input and as the topic's event; each field also as OCFCLUSTER_NAME."""

    event: NodeState
    cluster: str
    cluster_id: str  # the history; empty: none yet
    node_id: int
    incarnation: int  # of this start of the node
    m_sequence: int  # of the membership that the node knows
    reason: str
    time_ns: int  # wall clock
    socket: str  # of the agent; empty: it has none, and serves its own process alone

    def json(self) -> bytes:
        return json.dumps(self._asdict(), ensure_ascii=False).encode("utf-8", "replace")

    def environment(self) -> dict[str, str]:
        fields = {f"OCFCLUSTER_{name.upper()}": str(value) for name, value in self._asdict().items()}
        clean = {
            name: value.replace("\0", "").encode("utf-8", "replace").decode()
            for name, value in fields.items()
        }
        return ENVIRONMENT | clean


def check_command(section: HooksSection) -> None:
    """Raises SetupError where the command could not be run: better now than when it is needed."""
    if section.command and not os.access(section.command[0], os.X_OK):
        raise SetupError(f"hooks.command: {section.command[0]} is no file that this user may execute")
    if section.command and os.path.isdir(section.command[0]):
        raise SetupError(f"hooks.command: {section.command[0]} is a directory; name a program")


class Hooks:
    """Runs the command of ``section``; ``state`` is what was told last. Used on one loop."""

    def __init__(self, section: HooksSection) -> None:
        self.section = section
        self.state: NodeState | None = None
        self.runs = 0
        self.failures = 0  # did not start, left with another status than 0, or were killed
        self.timeouts = 0  # of those, killed at their time limit
        self.skipped = 0  # states that were over before the command was free for them
        self.last_error = ""
        self._waiting: list[Told] = []  # at most an eviction, and the newest of the other states
        self._worker: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None

    def tell(self, told: Told, publish: Callable[[NodeState, str, bytes], None]) -> None:
        """The node's state is this now; nothing happens if it was before. ``publish`` (state, topic, data) tells the
        topic."""
        if told.event == self.state or (self.state is None and told.event != "primary"):
            return  # a node that never was in the primary has nothing to lose
        self.state = told.event
        if self.section.topic:
            publish(told.event, self.section.topic, told.json())
        if not self.section.command:
            return
        kept = [one for one in self._waiting if one.event == "evicted"][-1:]
        if told.event == "evicted":
            kept = []
        self.skipped += len(self._waiting) - len(kept)
        self._waiting = [*kept, told]
        if self._worker is None:
            self._worker = asyncio.get_running_loop().create_task(self._work())

    async def ended(self) -> None:
        """Until what runs and waits is done; each for at most the time limit."""
        if self._worker is not None:
            await self._worker

    def abandon(self) -> None:
        """Kill what runs, and forget what waits: whoever ends the agent is in a hurry."""
        self._waiting.clear()
        self._kill()

    def document(self) -> dict[str, Any]:
        """For the status."""
        return {
            "state": self.state or "",
            "running": self._process is not None,
            "waiting": len(self._waiting),
            "runs": self.runs,
            "failures": self.failures,
            "timeouts": self.timeouts,
            "skipped": self.skipped,
            "last_error": self.last_error,
        }

    async def _work(self) -> None:
        try:
            while self._waiting:
                await self._run(self._waiting.pop(0))
        finally:
            self._worker = None

    async def _run(self, told: Told) -> None:
        command, limit_ms = self.section.command, self.section.timeout_ms
        if not command:  # a reload has taken it away
            return
        self.runs += 1
        began = time.monotonic()
        error = ""
        try:
            status = await self._execute(command, told, limit_ms)
            if status:
                error = f"it left with {status}" if status > 0 else f"signal {-status} ended it"
        except TimeoutError:
            self.timeouts += 1
            error = f"it was killed after {limit_ms} ms (hooks.timeout_ms)"
        except (OSError, ValueError) as failure:
            error = f"it could not be started: {failure}"
        seconds = round(time.monotonic() - began, 3)
        if error:
            self.failures += 1
            self.last_error = f"{told.event}: {error}"
            log.error("hook failed", told=told.event, command=command[0], seconds=seconds, error=error)
        else:
            log.info("hook", told=told.event, command=command[0], seconds=seconds)

    async def _execute(self, command: list[str], told: Told, limit_ms: int) -> int:
        """The command's exit status, minus the signal that ended it. Its output goes where the agent's log goes."""
        # A file instead of a pipe: nobody has to wait for the command to read.
        news = os.memfd_create("ocfcluster-hook", os.MFD_CLOEXEC)
        try:
            os.write(news, told.json())
            os.lseek(news, 0, os.SEEK_SET)
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=news,
                stdout=2,
                stderr=2,
                cwd="/",
                env=told.environment(),
                start_new_session=True,
            )
        finally:
            os.close(news)
        self._process = process
        try:
            async with asyncio.timeout(limit_ms / 1000):
                return await process.wait()
        except TimeoutError:
            self._kill()
            await process.wait()
            raise
        finally:
            self._process = None

    def _kill(self) -> None:
        """End the command and what it has started, as far as that has stayed in its process group."""
        if self._process is not None and self._process.returncode is None:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it has just ended


class HookTopic:
    """Publishes to a local topic in the agent's own name, one event each. ``deliver`` gives it to subscribers."""

    __slots__ = ("_deliver", "_local", "_next_number", "_producer")

    def __init__(
        self, local: LocalTopics, deliver: Callable[[bytes, RunHeader, int, int, int], None]
    ) -> None:
        self._local = local
        self._deliver = deliver
        self._producer = 0
        self._next_number = 1

    def publish(self, topic: Topic | None, data: bytes) -> str:
        """Why it could not be; empty: it is delivered."""
        if topic is None:
            return "there is no such topic"
        if not topic.local:
            return "it is global, and must be local"
        for _ in range(2):  # the end of a history takes the producer with it
            if not self._producer:
                self._producer, self._next_number = self._local.open_producer(), 1
            if not self._producer:
                break
            run = build_run(
                RunKind.PUBLICATION, topic.topic_id, self._producer, self._next_number, [data],
                time_ns=time.time_ns(),
            )  # fmt: skip
            header = check_run(run)
            _, skip, fresh = self._local.publish(header, 0)
            if fresh is not None:
                self._next_number += 1
                self._deliver(run, header, skip, fresh.seq, fresh.ev_id)
                return ""
            self._producer = 0
        return "too many local producers on this node"


class Teller:
    """Tells the process's hooks how one agent fares."""

    __slots__ = ("_agent", "_topic")

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._topic = HookTopic(agent.local, agent.connections.deliver_local)

    def notified(self, notification: Notification) -> None:
        if notification.code is NotificationCode.NOT_PRIMARY:
            self.tell("not_primary", "too few of the other nodes are in reach")
        else:
            self.tell("primary", "the same nodes are in reach again")

    def tell(self, state: NodeState, reason: str) -> None:
        """What the node is from here on, where it was something else."""
        agent = self._agent
        if agent.hooks is None:
            return
        told = Told(
            state, agent.config.cluster.name, agent.cluster_id(), agent.config.node.id, agent.incarnation,
            agent.router.views.m_sequence, reason, time.time_ns(), agent.socket_path,
        )  # fmt: skip
        agent.hooks.tell(told, self._publish)

    def _publish(self, state: NodeState, name: str, data: bytes) -> None:
        topic = self._agent.node.topics.get(name)
        if topic is None and state == "primary":
            return  # it is made once there is a first view, and nobody has missed anything
        why = self._topic.publish(topic, data)
        if why:
            log.error("hook failed", told=state, topic=name, error=why)
