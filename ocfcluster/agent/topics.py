"""What programs ask about topics: which there are, and to create, alter and remove them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from ocfcluster.agent.clients import Client
from ocfcluster.agent.current import OWN_LINE
from ocfcluster.agent.groups import Groups
from ocfcluster.agent.local_news import TOPIC as LOCAL_NEWS
from ocfcluster.agent.names import administration_fault, aliases_of, canonical, name_fault, scope_is_local
from ocfcluster.agent.permissions import Permissions
from ocfcluster.agent.starts import kept_now
from ocfcluster.errors import InvalidArgument
from ocfcluster.ipc.session import Incoming
from ocfcluster.limits import GROUPS
from ocfcluster.protocol.effects import Outcome
from ocfcluster.protocol.effects import Topic as NodeTopic
from ocfcluster.wire import control, frames
from ocfcluster.wire.frames import (
    Answer,
    Body,
    Subscribe,
    Topic,
    TopicAlter,
    TopicCreate,
    TopicRemove,
    TopicResolve,
)
from ocfcluster.wire.group import is_group
from ocfcluster.wire.topics import DEFAULT_SETTINGS

OnOutcome = Callable[[Outcome], None]

if TYPE_CHECKING:
    from ocfcluster.agent.daemon import Agent


class Topics:
    """Answers the requests about topics, at once or at their place in the order."""

    __slots__ = ("_agent", "_permissions", "_groups", "_command", "_answer", "_refuse")

    def __init__(
        self,
        agent: Agent,
        permissions: Permissions,
        groups: Groups,
        command: Callable[[Client | None, control.Operand, OnOutcome], int],
        answer: Callable[[Client, int, Answer, Body | None], None],
        refuse: Callable[[Client, int, int, str], None],
    ) -> None:
        self._agent = agent
        self._permissions = permissions
        self._groups = groups
        self._command = command
        self._answer = answer
        self._refuse = refuse

    @staticmethod
    def missing(name: str) -> tuple[int, str]:
        """Why there is no topic of this name although the agent has caught up with the order."""
        if is_group(name):
            return errno.ENOMEM, f"no room for {name!r}: {GROUPS} groups have members"
        return errno.EINVAL, f"there is no topic {name!r}"

    def of(self, body: Subscribe) -> tuple[list[NodeTopic], tuple[int, str]]:
        """The topics that a subscription names, as far as this agent knows, and why the first of those that are not
        among them is not; 0: all are. For one that goes on, a topic made again under its name is another one."""
        ids = {canonical(one.topic): one.topic_id for one in body.positions}
        found: list[NodeTopic] = []
        faults: list[tuple[int, str]] = []
        for name in body.topics:
            topic = self.find(name)
            if topic is None:
                faults.append(self.missing(name))
            elif ids.get(topic.name, topic.topic_id) != topic.topic_id:
                faults.append((errno.EINVAL, f"topic {name!r} was removed and made again"))
            else:
                found.append(topic)
        return found, faults[0] if faults else (0, "")

    def find(self, name: str) -> NodeTopic | None:
        """The topic, or the group that is in use; None: there is none as far as this agent knows."""
        if is_group(name):
            return self._groups.topic(name)
        return self._row(name) or self._agent.components.topic(name)

    def _row(self, name: str) -> NodeTopic | None:
        """Of the topic table, where names of groups are rules."""
        return LOCAL_NEWS if name == LOCAL_NEWS.name else self._agent.node.topics.get(canonical(name))

    def _describe(self, topic: NodeTopic) -> Topic:
        subscribers = sum(
            one.line.connection != OWN_LINE for one in self._agent.hub.subscribers(topic.topic_id)
        )
        return Topic(
            topic.name,
            topic.topic_id,
            topic.local,
            self._agent.last_seq(topic),
            subscribers,
            aliases_of(topic.name),
            msgspec.structs.replace(topic.settings, access=self._permissions.gate.access(topic)),
            *kept_now(self._agent, topic),
        )

    def resolve(self, client: Client, request: Incoming, body: Body | None) -> None:
        name = body.topic if isinstance(body, TopicResolve) else ""
        fault = name_fault(name)
        if fault:
            self._refuse(client, request.request_id, errno.EINVAL, fault)
            return

        def resolve() -> bool:
            topic = self.find(name)
            if topic is not None:
                self._answer(client, request.request_id, Answer.TOPIC, self._describe(topic))
            return topic is not None

        def then(_: Outcome) -> None:
            if not resolve():
                self._refuse(client, request.request_id, *self.missing(name))

        def open_group() -> None:
            if client.gone:
                return
            refusal = self._permissions.group_refusal(client, self._groups.unused([name]))
            if refusal is None:
                self._permissions.wait(client, open_group)
            elif refusal[0]:
                self._refuse(client, request.request_id, *refusal)
            else:
                self._command(client, control.GroupOpen(name), then)

        # It may have been created and answered elsewhere: catch up with the order first, where there is one.
        if not resolve():
            if is_group(name):
                self._groups.when_rules_are_known(client, request, open_group)
            elif not self._agent.router.views.primary:
                self._refuse(client, request.request_id, errno.EINVAL, f"there is no topic {name!r}")
            else:
                self._command(client, control.Barrier(), then)

    def create(self, client: Client, request: Incoming, body: Body | None) -> None:
        if not isinstance(body, TopicCreate):
            return
        name, local = body.topic, scope_is_local(body.topic, body.local)
        settings = self._permissions.owned(client, body.settings)
        code, fault = administration_fault(name)
        if code:
            self._refuse(client, request.request_id, code, fault)
            return

        def then(outcome: Outcome) -> None:
            topic = self._row(name)
            if outcome.error == errno.EEXIST:
                as_good = body.settings == DEFAULT_SETTINGS != settings  # but for its owner
                if as_good and topic is not None and topic.local == local:
                    self._answer(client, request.request_id, Answer.TOPIC, self._describe(topic))
                    return
                if topic is not None and topic.local == local:
                    text = f"topic {name!r} exists with other settings; alter it to change them"
                else:
                    text = f"topic {name!r} exists with scope {'global' if local else 'local'}"
                self._refuse(client, request.request_id, outcome.error, text)
            elif outcome.error:
                text = f"topic {name!r} was not created: {reason(outcome.error)}"
                self._refuse(client, request.request_id, outcome.error, text)
            elif topic is not None and topic.topic_id == outcome.value:
                self._answer(client, request.request_id, Answer.TOPIC, self._describe(topic))
            else:  # removed again since
                gone = Topic(name, outcome.value, local, 0, settings=settings)
                self._answer(client, request.request_id, Answer.TOPIC, gone)

        self._administer(client, request, control.TopicCreate(name, local, settings), then)

    def alter(self, client: Client, request: Incoming, body: Body | None) -> None:
        if not isinstance(body, TopicAlter):
            return
        name = body.topic
        code, fault = administration_fault(name)
        if code:
            self._refuse(client, request.request_id, code, fault)
            return

        self._change(client, request, control.TopicAlter(name, body.settings), name)

    def remove(self, client: Client, request: Incoming, body: Body | None) -> None:
        name = body.topic if isinstance(body, TopicRemove) else ""
        code, fault = administration_fault(name)
        if code:
            self._refuse(client, request.request_id, code, fault)
            return

        self._change(client, request, control.TopicRemove(name), name)

    def _change(self, client: Client, request: Incoming, operand: control.Operand, name: str) -> None:
        """Alter or remove a topic, and say whether it was."""

        def then(outcome: Outcome) -> None:
            if outcome.error:
                self._refuse(client, request.request_id, outcome.error, _no_change(name, outcome.error))
            else:
                self._answer(client, request.request_id, Answer.DONE, None)

        self._administer(client, request, operand, then)

    def _administer(
        self, client: Client, request: Incoming, operand: control.Operand, then: OnOutcome
    ) -> None:
        try:
            self._command(client, operand, then)
        except InvalidArgument as error:
            self._refuse(client, request.request_id, errno.EINVAL, error.strerror or str(error))

    def list(self, client: Client, request: Incoming, _: Body | None) -> None:
        known = sorted({**self._agent.node.topics, LOCAL_NEWS.name: LOCAL_NEWS}.items())
        topics = [self._describe(topic) for _, topic in known]
        self._answer(client, request.request_id, Answer.TOPICS, frames.Topics(topics))


def _no_change(name: str, code: int) -> str:
    """Why a topic was not altered or removed."""
    return f"there is no topic {name!r}" if code == errno.EINVAL else reason(code)


def reason(code: int) -> str:
    """Why the order has refused a command."""
    if code == errno.ENOMEM:
        return "a configured limit of the cluster is reached"
    return os.strerror(code)
