"""``ocfcluster collect``: what goes into the archive, and that it says what it lacks."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any, Self

import pytest

from ocfcluster.cli import main
from ocfcluster.errors import AgentUnreachable
from tests.shortage import no_room


class Agent:
    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def status(self) -> dict[str, Any]:
        return {"state": "active", "node_id": 7}

    def topics(self) -> list[str]:
        return ["orders"]


def contents(archive: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        names = opened.getnames()
        assert len({name.partition("/")[0] for name in names}) == 1  # all in one directory
        return {name.partition("/")[2]: opened.extractfile(name).read() for name in names}  # type: ignore[union-attr]


def run(*arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["collect", *arguments])
    assert ended.value.code in (0, None)


def test_an_archive_has_status_configuration_log_and_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ocfcluster.cli.options.connect", lambda *_, **__: Agent())
    tools = tmp_path / "bin"
    tools.mkdir()
    journal = tools / "journalctl"
    journal.write_text('#!/bin/sh\necho "$@"\n')
    journal.chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    config = tmp_path / "agent.toml"
    config.write_text("[node]\nid = 7\n")
    file = tmp_path / "node.tar.gz"
    run(str(file), "--config", str(config), "--unit", "ours", "--since", "-2h")
    inside = contents(file.read_bytes())
    assert json.loads(inside["status.json"])["node_id"] == 7
    assert json.loads(inside["topics.json"]) == ["orders"]
    assert inside["agent.toml"] == config.read_bytes()
    assert b"--unit=ours --since=-2h" in inside["journal.txt"]
    versions = json.loads(inside["versions.json"])
    assert versions["protocol"]["newest"] >= versions["protocol"]["oldest"] >= 1
    assert versions["packages"]["msgspec"]
    assert any(one["name"] == "lo" for one in json.loads(inside["interfaces.json"]))
    assert b"Udp:" in inside["proc/net/snmp"]
    assert file.stat().st_mode & 0o077 == 0
    assert capsys.readouterr().out.strip() == str(file)


@pytest.mark.parametrize(
    ("content", "goes_in"),
    [
        ("[node]\nid = 7\nmistake = 1\n", True),
        ("root:*:19000:0\n", False),
        ("[other]\npassword = 1\n", False),
    ],
)
def test_the_configuration_is_that_of_the_agent_and_no_other_file_that_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, goes_in: bool
) -> None:
    config = tmp_path / "1.toml"
    config.write_text(content)
    said = {"state": "active", "configuration": {"file": str(config)}}
    monkeypatch.setattr(Agent, "status", lambda _: said)
    monkeypatch.setattr("ocfcluster.cli.options.connect", lambda *_, **__: Agent())
    monkeypatch.setenv("PATH", str(tmp_path))
    file = tmp_path / "node.tar.gz"
    run(str(file))
    inside = contents(file.read_bytes())
    assert inside.get("agent.toml") == (content.encode() if goes_in else None)
    assert (f"{config}: does not look like" in inside["missing.txt"].decode()) is not goes_in
    run(str(file), "--config", str(config))
    assert contents(file.read_bytes())["agent.toml"] == content.encode()
    del said["configuration"]
    run(str(file))
    assert "started without a file" in contents(file.read_bytes())["missing.txt"].decode()


def test_what_cannot_be_had_is_named_and_the_rest_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    def nobody(*_: object, **__: object) -> None:
        raise AgentUnreachable("no agent at /nowhere")

    monkeypatch.setattr("ocfcluster.cli.options.connect", nobody)
    monkeypatch.setenv("PATH", str(tmp_path))
    run("-", "--config", str(tmp_path / "none.toml"))
    written = capfdbinary.readouterr()
    inside = contents(written.out)
    assert "status.json" not in inside
    missing = inside["missing.txt"].decode().splitlines()
    assert missing[0] == "status: no agent at /nowhere"
    assert missing[1] == f"{tmp_path}/none.toml: No such file or directory"
    assert missing[-1].startswith("journal: there is no journalctl here")
    for line in missing:
        assert line.encode() in written.err
    assert "versions.json" in inside


def test_nobody_else_reads_an_archive_whatever_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "node.tar.gz"
    file.write_bytes(bytes(1 << 20))
    file.chmod(0o644)
    run(str(file), "--config", str(tmp_path / "none.toml"))
    assert file.stat().st_mode & 0o777 == 0o600
    assert contents(file.read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda *_: "now")
    monkeypatch.setattr("socket.gethostname", lambda: "here")
    (tmp_path / "ocfcluster-here-now.tar.gz").symlink_to("elsewhere")
    with pytest.raises(SystemExit) as ended:
        main(["collect", "--config", str(tmp_path / "none.toml")])
    assert ended.value.code == 2
    assert not (tmp_path / "elsewhere").exists()


def test_an_archive_that_does_not_fit_leaves_nothing_and_names_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "node.tar.gz"
    with no_room(), pytest.raises(SystemExit) as ended:
        main(
            [
                "collect",
                str(file),
                "--config",
                str(tmp_path / "none"),
                "--socket",
                str(tmp_path / "none.sock"),
            ]
        )
    assert ended.value.code == 2
    assert (
        capsys.readouterr().err
        == f"ocfcluster: {file}: File too large; name a FILE where it can be written\n"
    )
    assert not file.exists()
