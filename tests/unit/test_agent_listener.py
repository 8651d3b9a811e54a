"""The agent's socket path: a dead agent's is replaced, a live one's and other people's files are not."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from ocfcluster.agent.listener import Listener
from ocfcluster.errors import SetupError


def test_it_is_made_with_its_directory_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "agent.sock"
    listener = Listener(str(path), 0o600)
    assert path.is_socket()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    listener.close()
    assert not path.exists()


def test_a_dead_agents_socket_is_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "agent.sock")
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(path)
    dead.close()
    Listener(path).close()


def test_a_live_agents_socket_is_not(tmp_path: Path) -> None:
    path = str(tmp_path / "agent.sock")
    live = Listener(path)
    with pytest.raises(SetupError, match=r"in use by a live agent.*node\.socket"):
        Listener(path)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
    live.close()


def test_what_is_no_socket_stays(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    path.write_text("precious")
    with pytest.raises(SetupError, match="no socket"):
        Listener(str(path))
    assert path.read_text() == "precious"


def test_a_successors_socket_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    first = Listener(str(path))
    path.unlink()
    second = Listener(str(path))
    first.close()
    assert path.is_socket()
    second.close()


def test_long_paths_and_directories_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="107"):
        Listener(str(tmp_path / ("x" * 200)))
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match=r"node\.socket"):
        Listener(str(tmp_path / "file" / "agent.sock"))
