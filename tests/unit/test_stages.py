"""The stage of `make test` that measures: for information, whatever comes of it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import run

Stage = Callable[[str], str]


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Stage:
    """Runs the stage, with these lines of Python in place of bench.quick; what it prints."""
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "__init__.py").write_text("")  # without it the installed package goes over this one
    (tmp_path / "logs").mkdir()
    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.setattr(run, "LOGS", tmp_path / "logs")
    monkeypatch.setattr(run, "CAPABILITIES", {"netns": lambda: None})
    monkeypatch.setenv("OCFCLUSTER_REQUIRE", "")

    def done(lines: str) -> str:
        (tmp_path / "bench" / "quick.py").write_text(f"import sys\n{lines}\n")
        runner = run.Runner(tmp_path, long=False, covered=False)
        runner.bench()
        assert runner.finish() == 0
        return capsys.readouterr().out.partition("\n\n")[0]

    return done


def test_the_table_is_shown_and_all_is_in_the_log(stage: Stage, tmp_path: Path) -> None:
    said = stage("print('round 1', file=sys.stderr); print('a table')")
    assert said.splitlines()[0].split()[:2] == ["bench", "done"]
    assert said.splitlines()[1:] == ["      a table"]
    assert (tmp_path / "logs" / "bench.log").read_text() == "round 1\na table\n"


def test_where_nothing_can_be_measured_the_reason_is_shown(stage: Stage) -> None:
    said = stage("print('git speaks\\nbench.quick: no history', file=sys.stderr); sys.exit(3)")
    assert said.split(maxsplit=1) == ["bench", "not run: no history"]


@pytest.mark.parametrize("end", ["sys.exit(1)", "raise ValueError", "import os; os.kill(os.getpid(), 9)"])
def test_what_goes_wrong_is_no_failure(stage: Stage, end: str) -> None:
    said = stage(f"print('half a table', flush=True)\n{end}")
    assert said.splitlines()[0].split()[:3] == ["bench", "gave", "up"]
    assert said.splitlines()[1:] == ["      half a table"]


def test_what_hangs_is_ended(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "BENCH_TIMEOUT_S", 0.5)
    words = stage("import time; time.sleep(60)").split()
    assert words[:3] == ["bench", "gave", "up"]
    assert float(words[3]) < 8


def test_without_namespaces_it_is_not_run(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "CAPABILITIES", {"netns": lambda: "needs root"})
    assert stage("sys.exit(1)").split(maxsplit=1) == ["bench", "not run: needs root"]


@pytest.mark.parametrize(
    ("arguments", "runs"), [(["--only", "bench"], 1), (["--long", "--only", "bench"], 0)]
)
def test_it_is_a_stage_by_name_and_not_a_long_test(
    arguments: list[str], runs: int, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    monkeypatch.setattr(run.Runner, "bench", lambda self: ran.append("bench"))
    monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
    assert run.main() == 0
    assert len(ran) == runs
