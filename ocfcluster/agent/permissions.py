"""Where rights are asked for: doors in front of requests, publications, and subscriptions whose topic is altered.

A door lets through, refuses with EPERM, or keeps the request until the names that it depends on are looked up.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

import msgspec

from ocfcluster.agent.access import Gate, Right, Verdict, is_rule, rule_for
from ocfcluster.agent.clients import Client
from ocfcluster.agent.config import AccessSection
from ocfcluster.agent.local_news import TOPIC as LOCAL_NEWS
from ocfcluster.agent.names import administration_fault, canonical, name_fault
from ocfcluster.ipc.session import Incoming, Stage
from ocfcluster.ipc.subscription import Subscription
from ocfcluster.limits import GROUP_PREFIX, TOPICS
from ocfcluster.protocol.effects import Outcome, Topic, TopicChange
from ocfcluster.wire import control
from ocfcluster.wire.frames import (
    Answer,
    Body,
    Grant,
    Notice,
    NoticeCode,
    TopicAccess,
    TopicAlter,
    TopicCreate,
    TopicRemove,
    TopicResolve,
)
from ocfcluster.wire.topics import DEFAULT_SETTINGS, TopicSettings

if TYPE_CHECKING:
    from ocfcluster.agent.daemon import Agent

WAIT: Final = -1  # instead of an errno: a name is being looked up
Handler = Callable[[Client, Incoming, Body | None], None]
Command = Callable[[Client | None, control.Operand, Callable[[Outcome], None]], int]


class Permissions:
    """The agent's side of ``Gate``. ``command``, ``reply`` and ``refuse`` are those of ``Requests``."""

    __slots__ = ("gate", "_agent", "_command", "_reply", "_refuse")

    def __init__(
        self, agent: Agent, command: Command,
        reply: Callable[[Client, int, Answer, Body | None], None],
        refuse: Callable[[Client, int, int, str], None],
    ) -> None:  # fmt: skip
        access = agent.config.access
        self.gate = Gate(access.administrators, access.create, agent.names, lambda: agent.node.topics)
        self._agent = agent
        self._command = command
        self._reply = reply
        self._refuse = refuse

    def configure(self, access: AccessSection) -> None:
        """Who may do everything, and who may create topics, from here on."""
        self.gate.administrators, self.gate.creators = access.administrators, access.create
        for client in self._agent.clients.values():
            client.publishes.clear()

    # --- doors ------------------------------------------------------------------------------------------------

    def creating(self, handler: Handler) -> Handler:
        """The door of TOPIC_CREATE. A topic that exists is as good for those who may not create one."""

        def door(client: Client, request: Incoming, body: Body | None) -> None:
            if not isinstance(body, TopicCreate) or administration_fault(body.topic)[0]:
                handler(client, request, body)
                return
            verdict = self.gate.create(client.peer, body.topic)
            if verdict is None:
                self.wait(client, lambda: door(client, request, body))
            elif verdict.allowed or self._exists(body):
                handler(client, request, body)
            else:
                self._caught_up(
                    client, request, lambda: self._exists(body), lambda: handler(client, request, body),
                    errno.EPERM, f"creating topic {body.topic!r} is not permitted: {verdict.why}",
                )  # fmt: skip

        return door

    def _exists(self, wanted: TopicCreate) -> bool:
        """Whether creating it would change nothing."""
        topic = self._agent.node.topics.get(wanted.topic)
        return (
            topic is not None
            and topic.local == wanted.local
            and wanted.settings in (topic.settings, DEFAULT_SETTINGS)
        )

    def administering(self, handler: Handler) -> Handler:
        """The door of TOPIC_ALTER and TOPIC_REMOVE."""

        def door(client: Client, request: Incoming, body: Body | None) -> None:
            name = body.topic if isinstance(body, TopicAlter | TopicRemove) else ""
            if administration_fault(name)[0]:
                handler(client, request, body)
                return
            topic = self._topic(name)
            if topic is None:  # it may have been created elsewhere
                self._caught_up(
                    client, request, lambda: self._topic(name) is not None,
                    lambda: door(client, request, body), errno.EINVAL, f"there is no topic {name!r}",
                )  # fmt: skip
                return
            verdict = self.gate.judge(client.peer, Right.ADMINISTER, topic)
            if verdict is None:
                self.wait(client, lambda: door(client, request, body))
            elif verdict.allowed:
                handler(client, request, body)
            else:
                text = f"administering topic {name!r} is not permitted: {verdict.why}"
                self._deny(client, request, text)

        return door

    def operating(self, handler: Handler) -> Handler:
        """The door of ADMINISTER: for those who may do everything."""

        def door(client: Client, request: Incoming, body: Body | None) -> None:
            verdict = self.gate.everything(client.peer)
            if verdict is None:
                self.wait(client, lambda: door(client, request, body))
            elif verdict.allowed:
                handler(client, request, body)
            else:
                self._deny(client, request, f"administration is not permitted: {verdict.why}")

        return door

    def _topic(self, name: str) -> Topic | None:
        return LOCAL_NEWS if name == LOCAL_NEWS.name else self._agent.node.topics.get(canonical(name))

    def _caught_up(
        self, client: Client, request: Incoming, met: Callable[[], bool], go_on: Callable[[], None],
        code: int, text: str,
    ) -> None:  # fmt: skip
        """When this agent has caught up with the order: ``go_on`` if ``met`` then, else refuse."""

        def then(outcome: Outcome) -> None:
            if self._is_gone(client):
                return
            if not outcome.error and met():
                go_on()
            else:
                self._count(code)
                self._refuse(client, request.request_id, code, text)

        if met():
            go_on()
        elif self._agent.router.views.primary:
            self._command(client, control.Barrier(), then)
        else:  # what a minority knows is all there is to know
            self._count(code)
            self._refuse(client, request.request_id, code, text)

    def _deny(self, client: Client, request: Incoming, text: str) -> None:
        self._count(errno.EPERM)
        self._refuse(client, request.request_id, errno.EPERM, text)

    def _count(self, code: int) -> None:
        if code == errno.EPERM:
            self._agent.counters.requests_not_permitted += 1

    def wait(
        self, client: Client, go_on: Callable[[], None], give_up: Callable[[], None] | None = None
    ) -> None:
        """``go_on`` when names have been looked up; ``give_up`` if the client has gone meanwhile."""

        def told() -> None:
            if not self._is_gone(client):
                self._agent.catch_up()
                go_on()
            elif give_up is not None:
                give_up()

        self._agent.names.when_answered(told)

    @staticmethod
    def _is_gone(client: Client) -> bool:
        return client.gone or client.session.stage is Stage.FAILED

    # --- topics -----------------------------------------------------------------------------------------------

    def owned(self, client: Client, settings: TopicSettings) -> TopicSettings:
        """Settings of a new topic: who makes one may administer it, unless the settings say who may."""
        everything = self.gate.everything(client.peer)
        if settings.access.administer or (everything is not None and everything.allowed):
            return settings
        access = msgspec.structs.replace(settings.access, administer=(f"uid:{client.peer.uid}",))
        return msgspec.structs.replace(settings, access=access)

    def publish_refusal(self, client: Client, topic: Topic) -> int:
        """0, an errno, or WAIT. What is permitted stays so until the topic is altered: ``client.publishes``."""
        if is_rule(topic):
            return errno.EINVAL
        verdict = self.gate.judge(client.peer, Right.PUBLISH, topic)
        if verdict is None:
            return WAIT
        if not verdict.allowed:
            return errno.EPERM
        if len(client.publishes) >= TOPICS:
            client.publishes.clear()  # of topics that were removed, most of them
        client.publishes[topic.topic_id] = topic
        return 0

    def subscribe_refusal(self, client: Client, topics: Iterable[Topic]) -> tuple[int, str] | None:
        """An errno and why, or (0, ""); None: a name is being looked up."""
        pending = False
        for topic in topics:
            if is_rule(topic):
                return errno.EINVAL, f"{topic.name!r} is no topic: it says who may use groups"
            verdict = self.gate.judge(client.peer, Right.SUBSCRIBE, topic)
            pending = pending or verdict is None
            if verdict is not None and not verdict.allowed:
                self._count(errno.EPERM)
                return errno.EPERM, f"subscribing to topic {topic.name!r} is not permitted: {verdict.why}"
        return None if pending else (0, "")

    def group_refusal(self, client: Client, groups: Iterable[Topic]) -> tuple[int, str] | None:
        """As ``subscribe_refusal``, for groups in which any right will do."""
        pending = False
        for group in groups:
            verdicts = [self.gate.judge(client.peer, right, group) for right in Right]
            if any(verdict is not None and verdict.allowed for verdict in verdicts):
                continue
            if None not in verdicts:
                self._count(errno.EPERM)
                return errno.EPERM, f"no right in {group.name!r}; `ocfcluster topic show` says who has one"
            pending = True
        return None if pending else (0, "")

    def topic_changed(self, change: TopicChange) -> None:
        """At its place in the order: subscriptions that are not permitted any more end."""
        if is_rule(change.topic):
            for client in self._agent.clients.values():
                client.publishes.clear()
            for subscription in self._agent.hub.subscriptions():
                for topic_id, name in subscription.topics.items():
                    if name.startswith(GROUP_PREFIX):
                        self._review(subscription, Topic(topic_id, name, False))
        elif change.altered:
            for subscription in self._agent.hub.subscribers(change.topic.topic_id):
                self._review(subscription, change.topic)

    def _review(self, subscription: Subscription, topic: Topic) -> None:
        client = self._agent.clients.get(subscription.line.connection)
        if client is None or subscription.ended:
            return
        verdict = self.gate.judge(client.peer, Right.SUBSCRIBE, topic)
        if verdict is None:

            def again() -> None:
                now = self._agent.node.topic_by_id(topic.topic_id)
                self._review(subscription, topic if now is None else now)

            self.wait(client, again)
        elif not verdict.allowed:
            reason = f"subscribing to it is not permitted any more: {verdict.why}"
            notice = Notice(NoticeCode.NOT_PERMITTED, topic.name, reason=reason, final=True)
            self._agent.hub.notify(subscription, notice)

    # --- explaining -------------------------------------------------------------------------------------------

    def on_topic_access(self, client: Client, request: Incoming, body: Body | None) -> None:
        """Who may do what with a topic or group, and what the client itself may."""
        name = canonical(body.topic) if isinstance(body, TopicResolve) else ""
        fault = name_fault(name)
        if fault:
            self._refuse(client, request.request_id, errno.EINVAL, fault)
            return

        def explain() -> None:
            topic = Topic(0xFFFF_FFFF, name, False) if name.startswith(GROUP_PREFIX) else self._topic(name)
            if topic is None:  # removed while names were looked up
                self._refuse(client, request.request_id, errno.EINVAL, f"there is no topic {name!r}")
                return
            access = self.gate.access(topic)
            verdicts = {right: self.gate.judge(client.peer, right, topic) for right in Right}
            unknown = self.gate.nobody([*access.publish, *access.subscribe, *access.administer])
            if unknown is None or None in verdicts.values():
                self.wait(client, explain)
                return
            grants = [_grant(right, getattr(access, right), verdict) for right, verdict in verdicts.items()]
            rule = rule_for(name, self._agent.node.topics) if name.startswith(GROUP_PREFIX) else None
            answer = TopicAccess(
                name, grants, client.peer.uid, unknown, rule.name if rule is not None else ""
            )
            self._reply(client, request.request_id, Answer.TOPIC_ACCESS, answer)

        def known() -> bool:
            return name.startswith(GROUP_PREFIX) or self._topic(name) is not None

        self._caught_up(client, request, known, explain, errno.EINVAL, f"there is no topic {name!r}")


def _grant(right: Right, principals: tuple[str, ...], verdict: Verdict | None) -> Grant:
    if verdict is None:
        raise RuntimeError("a grant that is not decided")
    return Grant(right.value, list(principals), verdict.allowed, verdict.why)
