"""``ocfcluster status --watch`` and ``ocfcluster members``: into pipes, on small terminals, while the cluster forms."""

from __future__ import annotations

import io
import os
from typing import Any, Self

import pytest
from rich.console import Console

from ocfcluster.cli import main, status

ROWS = [(f"key {number}", f"value {number}") for number in range(50)]


class Forming:
    """A client whose cluster is forming."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def status(self) -> dict[str, Any]:
        return {"state": "forming", "waiting_for": "nodes 2", "members": []}


@pytest.fixture(autouse=True)
def forming(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ocfcluster.cli.options.connect", lambda *_, **__: Forming())


def shown(height: int, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height)
    with console.capture() as captured:
        console.print(status.fitting(ROWS, console))
    return [line.rstrip() for line in captured.get().splitlines()]


def test_a_name_cannot_tell_the_terminal_what_to_do() -> None:
    document = {"clients": [{"name": "x\x1b]0;y"}], "names": ["\x1b[2J"], "more": [{"a": 1}, "\x1b"]}
    assert "\x1b" not in "".join(value for _, value in status.flat(document))


def test_watch_prints_into_a_pipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rounds = iter([None])

    def interrupted(_: float) -> None:
        if next(rounds, "end") == "end":
            raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", interrupted)
    with pytest.raises(SystemExit) as ended:
        main(["status", "--watch"])
    assert ended.value.code == 130
    assert capsys.readouterr().out.count("forming") == 2


def test_watch_ends_quietly_where_the_reader_goes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        with pytest.raises(SystemExit) as ended:
            main(["status", "--watch"])
    assert ended.value.code == 0
    assert capsys.readouterr().err == ""


def test_a_small_terminal_shows_the_top_and_counts_the_rest() -> None:
    lines = shown(height=20)
    assert len(lines) <= 20
    rows = [line for line in lines if "value " in line and "key  " not in line]
    assert rows[0].split() == ["key", "0", "value", "0"]
    assert lines[-1] == f"... {50 - len(rows)} more rows; --json shows all"
    assert len(rows) >= 14


def test_rows_folded_on_a_narrow_terminal_fit_too() -> None:
    lines = shown(height=20, width=12)
    assert len(lines) <= 20
    assert lines[-1].startswith("... ")


def test_a_large_terminal_shows_all() -> None:
    lines = shown(height=60)
    assert "more rows" not in "".join(lines)
    assert lines[-2].split() == ["key", "49", "value", "49"]


def test_members_says_what_it_waits_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["members"])
    assert ended.value.code == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "ocfcluster: no members yet: waiting for nodes 2\n")


def test_members_json_is_an_empty_array(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["members", "--json"])
    assert capsys.readouterr().out == "[]\n"
