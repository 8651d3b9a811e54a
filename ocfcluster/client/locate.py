"""Where the agent's socket is, for programs and for the agent alike."""

from __future__ import annotations

import os
from typing import Final

SOCKET_VARIABLE: Final = "OCFCLUSTER_SOCKET"
SYSTEM_DIRECTORY: Final = "/run/ocfcluster"
SOCKET_NAME: Final = "agent.sock"


def default_socket_path() -> str:
    """The agent's socket unless one is named.

    In this order: ``$OCFCLUSTER_SOCKET``; ``/run/ocfcluster/agent.sock`` for root, and for everybody where that
    directory exists; ``$XDG_RUNTIME_DIR/ocfcluster/agent.sock``; ``/tmp/ocfcluster-UID/agent.sock``.
    """
    named = os.environ.get(SOCKET_VARIABLE)
    if named:
        return named
    if os.geteuid() == 0 or os.path.isdir(SYSTEM_DIRECTORY):
        return os.path.join(SYSTEM_DIRECTORY, SOCKET_NAME)
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime:
        return os.path.join(runtime, "ocfcluster", SOCKET_NAME)
    return os.path.join("/tmp", f"ocfcluster-{os.geteuid()}", SOCKET_NAME)  # noqa: S108 - the agent makes it 0700
