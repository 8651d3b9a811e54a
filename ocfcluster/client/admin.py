"""Administration of a cluster by a program: what ``ocfcluster node``, ``shutdown`` and the like do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ocfcluster.wire.frames import Administer, Administration, Request

if TYPE_CHECKING:
    from ocfcluster.client.client import Client


class Admin:
    """``Client.admin``: for root and the user whom the agent runs as; NotPermitted for others.

    The first five are ordered: they return at their place in the cluster's order, and wait where there is no
    majority. Raises InvalidArgument, Refused (the nodes that are there would have no majority then), OutcomeUnknown.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def _ask(self, body: Administer, timeout: float | None) -> None:
        self._client.connection().call(Request.ADMINISTER, body, timeout)

    def add_node(self, node_id: int, votes: int = 1, *, timeout: float | None = None) -> None:
        """Enter a node into the node table; it may join from then on."""
        self._ask(Administer(Administration.NODE_ADD, node_id, votes), timeout)

    def remove_node(self, node_id: int, *, timeout: float | None = None) -> None:
        """Take a node out of the node table, and out of the view."""
        self._ask(Administer(Administration.NODE_REMOVE, node_id), timeout)

    def set_votes(self, node_id: int, votes: int, *, timeout: float | None = None) -> None:
        """Give a node of the node table other votes."""
        self._ask(Administer(Administration.NODE_VOTES, node_id, votes), timeout)

    def sequence(self, node_id: int, *, timeout: float | None = None) -> None:
        """Hand the sequencer's work to a member."""
        self._ask(Administer(Administration.SEQUENCE, node_id), timeout)

    def shutdown(self, *, timeout: float | None = None) -> None:
        """Stop all members, at one place in the order."""
        self._ask(Administer(Administration.SHUTDOWN), timeout)

    def bootstrap_without(self, nodes: Iterable[int], *, timeout: float | None = None) -> None:
        """Have a cluster that waits to form for the first time form without ``nodes``.

        This and what follows is told to the agent itself, which must be waiting: Refused where it is not.
        """
        self._ask(Administer(Administration.BOOTSTRAP_WITHOUT, nodes=list(nodes)), timeout)

    def new_history(self, *, timeout: float | None = None) -> None:
        """Have a cluster that waits for members go on without them: what only they had is declared lost."""
        self._ask(Administer(Administration.NEW_HISTORY), timeout)

    def rejoin(self, *, timeout: float | None = None) -> None:
        """Have the agent give up the history that it waits in, and join the other one that it hears."""
        self._ask(Administer(Administration.REJOIN), timeout)

    def reload(self, *, check: bool = False, timeout: float | None = None) -> dict[str, Any]:
        """Have the agent read its configuration file again; with ``check`` only say what that would change.

        All or nothing: ``applied`` of the document (docs/cli.md, reload) says which, ``reason`` why not. Raises
        InvalidArgument where the agent was started without a file.
        """
        command = Administration.RELOAD_CHECK if check else Administration.RELOAD
        answer = self._client.connection().call(Request.ADMINISTER, Administer(command), timeout)
        return dict(answer.document)

    def check_keys(self, key_ids: Iterable[str], *, timeout: float | None = None) -> None:
        """Whether the agent's key file may name just these keys, of which the first one seals: Refused where a member
        of
        the cluster would be lost by it, with the reason."""
        self._ask(Administer(Administration.KEYS_CHECK, keys=list(key_ids)), timeout)

    def load_keys(self, *, force: bool = False, timeout: float | None = None) -> None:
        """Have the agent read its key file again: Refused, with nothing changed, as by ``check_keys`` or where the file
        cannot be read. ``force``: whoever is lost by it."""
        command = Administration.KEYS_LOAD_FORCED if force else Administration.KEYS_LOAD
        self._ask(Administer(command), timeout)
