"""Where programs look for the agent when they are not told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ocfcluster.client import locate
from ocfcluster.errors import AgentUnreachable


@pytest.fixture
def user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A user without a directory of the system's; where the socket is looked for then."""
    monkeypatch.delenv(locate.SOCKET_VARIABLE, raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(locate, "SYSTEM_DIRECTORY", str(tmp_path / "none"))
    monkeypatch.setattr(os, "geteuid", lambda: 70_123)
    monkeypatch.setattr(os.path, "join", lambda *parts: "/".join([str(tmp_path), *parts[1:]]))
    return f"{tmp_path}/ocfcluster-70123"


def test_a_directory_of_another_user_is_not_taken_for_the_agents(user: str) -> None:
    assert locate.default_socket_path().endswith("/agent.sock")
    os.mkdir(user)
    if os.stat(user).st_uid == 0:
        assert locate.default_socket_path().endswith("/agent.sock"), "root's is as good as one's own"
        os.chown(user, 70_124, 70_124)
    with pytest.raises(
        AgentUnreachable, match="another user's: name the agent's socket, by OCFCLUSTER_SOCKET"
    ):
        locate.default_socket_path()
    os.rmdir(user)
    os.symlink("/", user)
    if os.lstat(user).st_uid == 0:
        os.lchown(user, 70_124, 70_124)
    with pytest.raises(AgentUnreachable):
        locate.default_socket_path()
