"""``ocfcluster keygen`` and ``ocfcluster key``: the files they make, what they ask, and what they say."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import pytest

from ocfcluster import errors
from ocfcluster.agent.keys import read_key_file
from ocfcluster.cli import main
from tests.keyed import new_key, write_keys
from tests.shortage import no_room

OLD = new_key()
NEW = new_key(OLD)
NOBODY = 65534


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_keygen_makes_a_file_for_its_owner_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "key"
    umask = os.umask(0)
    try:
        assert run("keygen", str(file), "--json") == 0
    finally:
        os.umask(umask)
    (key,) = read_key_file(file)
    assert file.stat().st_mode & 0o7777 == 0o600
    printed = capsys.readouterr().out
    assert json.loads(printed) == {"command": "keygen", "file": str(file), "key_id": key.id}
    assert key.encoded() not in printed
    assert run("keygen", str(tmp_path / "other")) == 0
    assert read_key_file(tmp_path / "other") != [key]


def test_keygen_replaces_nothing_unless_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_keys(tmp_path / "key", OLD)
    assert run("keygen", str(file)) == 2
    assert "is there already" in capsys.readouterr().err
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere")
    assert run("keygen", str(link)) == 2
    assert not (tmp_path / "elsewhere").exists()
    assert read_key_file(file) == [OLD]
    assert run("keygen", str(file), "--force") == 0
    assert read_key_file(file) != [OLD]
    assert run("keygen", str(tmp_path / "no" / "such")) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key", "link"]


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o400])
def test_a_key_that_is_made_is_for_its_owner_alone_whatever_was_there(mode: int, tmp_path: Path) -> None:
    file = write_keys(tmp_path / "key", OLD)
    if os.geteuid() == 0:
        os.chown(file, NOBODY, NOBODY)
    file.chmod(mode)
    assert run("keygen", str(file), "--force") == 0
    found = file.stat()
    assert found.st_mode & 0o7777 == 0o600
    assert (found.st_uid, found.st_gid) == (os.geteuid(), os.getegid())
    assert read_key_file(file) != [OLD]


class Recorder:
    """A client whose agent takes what its key file says, or refuses to check or to load it."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.asked: list[Any] = []
        self.refuses = ""
        self.admin = self

    def check_keys(self, key_ids: Iterable[str]) -> None:
        self.asked.append(list(key_ids))
        if self.refuses == "check":
            raise errors.Refused("node 3 has not said that it has it")

    def load_keys(self, *, force: bool = False) -> None:
        self.asked.append("load anyway" if force else "load")
        if self.refuses == "load":
            raise errors.Refused("meanwhile it is so no more")

    def status(self) -> dict[str, Any]:
        key_ids = [key.id for key in read_key_file(self.file, own=False)]
        members = [{"node_id": 1, "key_ids": key_ids}, {"node_id": 2, "key_ids": []}]
        return {
            "sealing": {"sealed": True, "key_file": str(self.file), "accepts": key_ids, "members": members}
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Recorder:
    made = Recorder(write_keys(tmp_path / "key", OLD))
    monkeypatch.setattr("ocfcluster.cli.options.connect", lambda *_, **__: made)
    return made


def test_three_commands_change_the_key(
    client: Recorder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = write_keys(tmp_path / "new", NEW)
    assert run("key", "add", str(new), "--json") == 0
    assert read_key_file(client.file) == [OLD, NEW]
    assert json.loads(capsys.readouterr().out) == {
        "command": "key add", "key_ids": [NEW.id], "seals_with": OLD.id, "accepts": [OLD.id, NEW.id],
    }  # fmt: skip
    assert run("key", "use", NEW.id) == 0
    assert read_key_file(client.file) == [NEW, OLD]
    assert run("key", "drop", OLD.id) == 0
    assert read_key_file(client.file) == [NEW]
    assert client.asked == [[OLD.id, NEW.id], "load", [NEW.id, OLD.id], "load", [NEW.id], "load"]
    printed = capsys.readouterr()
    assert OLD.encoded() not in printed.out + printed.err
    assert run("key", "add", str(new)) == 0, "again: nothing is added"
    assert read_key_file(client.file) == [NEW]


@pytest.mark.parametrize("refuses", ["check", "load"])
def test_what_the_agent_refuses_leaves_the_file_as_it_was(
    client: Recorder, refuses: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_keys(client.file, OLD, NEW)
    client.refuses = refuses
    assert run("key", "use", NEW.id) == 5
    assert read_key_file(client.file) == [OLD, NEW]
    assert capsys.readouterr().err


def test_force_asks_nobody(client: Recorder) -> None:
    write_keys(client.file, NEW, OLD)
    client.refuses = "check"
    assert run("key", "drop", OLD.id, "--force") == 0
    assert run("key", "load", "--force") == 0
    assert read_key_file(client.file) == [NEW]
    assert client.asked == ["load anyway", "load anyway"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, whose command it is")
def test_root_changes_the_file_of_an_agent_of_another_user(client: Recorder, tmp_path: Path) -> None:
    os.chown(client.file, NOBODY, NOBODY)
    assert run("key", "add", str(write_keys(tmp_path / "new", NEW))) == 0
    found = client.file.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (NOBODY, NOBODY, 0o600)


def test_a_change_is_on_disk(client: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    assert run("key", "add", str(write_keys(tmp_path / "new", NEW))) == 0
    assert synced[-1] == str(tmp_path)
    assert run("keygen", str(tmp_path / "made")) == 0
    assert synced[-2:] == [str(tmp_path / "made"), str(tmp_path)]


def test_a_key_that_could_not_be_written_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with no_room():
        assert run("keygen", str(tmp_path / "made")) == 2
    assert "File too large" in capsys.readouterr().err
    assert run("keygen", str(tmp_path / "made")) == 0


def test_a_file_keeps_its_owner_and_mode(client: Recorder, tmp_path: Path) -> None:
    client.file.chmod(0o400)
    if os.geteuid() == 0:
        os.chown(client.file, 0, os.getegid())
        client.file.chmod(0o440)
    mode = client.file.stat().st_mode
    assert run("key", "add", str(write_keys(tmp_path / "new", NEW))) == 0
    assert client.file.stat().st_mode == mode
    assert not list(tmp_path.glob(".*")), "nothing half-written is left"


def test_what_cannot_be_is_said(client: Recorder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("key", "use", "00000000") == 5
    assert f"it has {OLD.id}" in capsys.readouterr().err
    assert run("key", "drop", OLD.id) == 5
    assert "use` another one first" in capsys.readouterr().err
    loose = write_keys(tmp_path / "loose", NEW)
    loose.chmod(0o644)
    assert run("key", "add", str(loose)) == 2
    assert capsys.readouterr().err.startswith(f"ocfcluster: {loose} has mode 0644")  # the argument is wrong
    assert client.asked == []
    assert read_key_file(client.file) == [OLD]


def test_status_shows_who_has_what(client: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    write_keys(client.file, OLD, NEW)
    assert run("key", "status") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["1", OLD.id, NEW.id] in lines
    assert ["2", "?", "?"] in lines
    assert run("key", "status", "--json") == 0
    assert json.loads(capsys.readouterr().out)["accepts"] == [OLD.id, NEW.id]


def test_load(client: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("key", "load") == 0
    assert client.asked == ["load"]
    assert OLD.id in capsys.readouterr().out
