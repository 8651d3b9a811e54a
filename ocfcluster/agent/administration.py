"""Commands of an operator: ordered ones to the cluster that runs, local ones to an agent that waits to form.

They are for those who may do everything on the node: ``permissions.Permissions.operating`` stands before it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any, Final

from ocfcluster.agent.clients import Client
from ocfcluster.errors import InvalidArgument
from ocfcluster.ipc.session import Incoming
from ocfcluster.limits import NODE_ID_MOST, NODES
from ocfcluster.protocol.effects import Outcome
from ocfcluster.protocol.operator import BootstrapWithout, NewHistory, OperatorCommand, Rejoin
from ocfcluster.wire import control
from ocfcluster.wire.frames import Administer, Administration, Answer, Body, Status

_ORDERED: Final[dict[int, Callable[[Administer], control.Operand]]] = {
    Administration.NODE_ADD: lambda asked: control.NodeAdd(asked.node_id, asked.votes),
    Administration.NODE_REMOVE: lambda asked: control.NodeRemove(asked.node_id),
    Administration.NODE_VOTES: lambda asked: control.NodeVotes(asked.node_id, asked.votes),
    Administration.SEQUENCE: lambda asked: control.Sequence(asked.node_id),
    Administration.SHUTDOWN: lambda _asked: control.Shutdown(),
}
_KEYS: Final = (Administration.KEYS_CHECK, Administration.KEYS_LOAD, Administration.KEYS_LOAD_FORCED)
_LOCAL: Final[dict[int, Callable[[Administer], OperatorCommand]]] = {
    Administration.BOOTSTRAP_WITHOUT: lambda asked: BootstrapWithout(tuple(sorted(set(asked.nodes)))),
    Administration.NEW_HISTORY: lambda _asked: NewHistory(),
    Administration.REJOIN: lambda _asked: Rejoin(),
}


class Administrator:
    """Answers ADMINISTER: at once where it is refused or local, else at the command's place in the order.

    ``operator`` gives a command to the node and says why not, ``keys`` one about the key file; ``command`` puts one
    into the order; ``reload`` (check, then) reads the configuration again and says why not; ``reply`` and ``refuse``
    answer a request.
    """

    __slots__ = ("_operator", "_keys", "_command", "_reload", "_reply", "_refuse")

    def __init__(
        self,
        operator: Callable[[OperatorCommand], str],
        keys: Callable[[Administer], str],
        command: Callable[[Client | None, control.Operand, Callable[[Outcome], None]], int],
        reload: Callable[[bool, Callable[[dict[str, Any]], None]], str],
        reply: Callable[..., None],
        refuse: Callable[[Client, int, int, str], None],
    ) -> None:
        self._operator = operator
        self._keys = keys
        self._command = command
        self._reload = reload
        self._reply = reply
        self._refuse = refuse

    def administer(self, client: Client, request: Incoming, body: Body | None) -> None:
        if not isinstance(body, Administer):
            return
        ordered = _ORDERED.get(body.command)
        local = _LOCAL.get(body.command)
        if ordered is not None:
            self._order(client, request, body, ordered(body))
        elif body.command in (Administration.RELOAD, Administration.RELOAD_CHECK):
            self._read_again(client, request, check=body.command == Administration.RELOAD_CHECK)
        elif local is not None:
            self._tell(client, request, body, local(body))
        elif body.command in _KEYS:
            self._done(client, request, self._keys(body))
        else:
            text = f"this agent knows no command {body.command} of administration"
            self._refuse(client, request.request_id, errno.EINVAL, text)

    def _read_again(self, client: Client, request: Incoming, *, check: bool) -> None:
        def then(document: dict[str, Any]) -> None:
            self._reply(client, request.request_id, Answer.STATUS, Status(document))

        why = self._reload(check, then)
        if why:
            self._refuse(client, request.request_id, errno.EINVAL, why)

    def _order(self, client: Client, request: Incoming, asked: Administer, operand: control.Operand) -> None:
        def then(outcome: Outcome) -> None:
            if outcome.error:
                code = errno.EINVAL if outcome.error == errno.EEXIST else outcome.error
                self._refuse(client, request.request_id, code, _reason(asked, outcome.error))
            else:
                self._reply(client, request.request_id, Answer.DONE)

        try:
            self._command(client, operand, then)
        except InvalidArgument as error:
            self._refuse(client, request.request_id, errno.EINVAL, error.strerror or str(error))

    def _tell(self, client: Client, request: Incoming, asked: Administer, command: OperatorCommand) -> None:
        fault = _without_fault(asked.nodes) if asked.command == Administration.BOOTSTRAP_WITHOUT else ""
        if fault:
            self._refuse(client, request.request_id, errno.EINVAL, fault)
            return
        self._done(client, request, self._operator(command))

    def _done(self, client: Client, request: Incoming, why: str) -> None:
        if why:
            self._refuse(client, request.request_id, errno.EBUSY, why)
        else:
            self._reply(client, request.request_id, Answer.DONE)


def _reason(asked: Administer, code: int) -> str:
    """Why the order refused ``asked``, in words."""
    node = f"node {asked.node_id}"
    if code == errno.EBUSY:
        if asked.command == Administration.SEQUENCE:
            return f"{node} cannot take over the order now"
        return "the nodes that are there would have no majority in the table that results: start more of them first"
    if code == errno.EINVAL:
        return {
            int(Administration.SEQUENCE): f"{node} is no member of the view",
        }.get(asked.command, f"{node} is not in the node table")
    if code == errno.EEXIST:
        return f"{node} is in the node table with other votes; `ocfcluster node votes` changes them"
    if code == errno.ENOMEM:
        return f"a node table has at most {NODES} nodes, and must fit one datagram on the cluster's network"
    return os.strerror(code)


def _without_fault(nodes: list[int]) -> str:
    if not nodes:
        return "bootstrap without whom? Name the nodes that are missing; where none is, the cluster forms by itself"
    if len(nodes) > NODES or not all(1 <= node_id <= NODE_ID_MOST for node_id in nodes):
        return f"at most {NODES} nodes, with ids from 1 to {NODE_ID_MOST}"
    return ""
