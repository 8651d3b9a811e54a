"""Where the agent's socket is, for programs and for the agent alike."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Final

from ocfcluster.errors import AgentUnreachable

SOCKET_VARIABLE: Final = "OCFCLUSTER_SOCKET"
SYSTEM_DIRECTORY: Final = "/run/ocfcluster"
SOCKET_NAME: Final = "agent.sock"


def default_socket_path() -> str:
    """The agent's socket unless one is named.

    In this order: ``$OCFCLUSTER_SOCKET``; ``/run/ocfcluster/agent.sock`` for root, and for everybody where that
    directory exists; ``$XDG_RUNTIME_DIR/ocfcluster/agent.sock``; ``/tmp/ocfcluster-UID/agent.sock``. Raises
    AgentUnreachable where the last one's directory is another user's, who would be taken for the agent.
    """
    named = os.environ.get(SOCKET_VARIABLE)
    if named:
        return named
    if os.geteuid() == 0 or os.path.isdir(SYSTEM_DIRECTORY):
        return os.path.join(SYSTEM_DIRECTORY, SOCKET_NAME)
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime:
        return os.path.join(runtime, "ocfcluster", SOCKET_NAME)
    directory = os.path.join("/tmp", f"ocfcluster-{os.geteuid()}")  # noqa: S108 - the agent makes it 0700
    with suppress(FileNotFoundError):
        if os.lstat(directory).st_uid not in (0, os.geteuid()):
            raise AgentUnreachable(
                f"{directory} is another user's: name the agent's socket, by {SOCKET_VARIABLE}"
            )
    return os.path.join(directory, SOCKET_NAME)
