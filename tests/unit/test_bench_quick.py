"""The quick look at speed: against which revision, whose code runs, what is said of it; nothing is measured here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import quick
from bench.compare import comparing
from bench.compare.comparing import Comparing
from bench.compare.peers.ocf import PYTHON, Ocfcluster
from bench.compare.ratios import medians, spreads
from bench.compare.work import COMPARISONS, OURS, Throughput
from bench.quick import NoRevision, NotHere, Revision, chosen, unpack
from tests.cluster import ROOT
from tests.netns.hosts import Hosts

# --- a repository -----------------------------------------------------------------------------------------------


class Repository:
    """A git repository in which each commit, tag and clone is made by a call; a second passes with each commit."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.time = 1_700_000_000

    def git(self, *arguments: str) -> str:
        date = f"{self.time} +0000"
        environment = os.environ | {
            "GIT_AUTHOR_DATE": date,
            "GIT_COMMITTER_DATE": date,
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_SYSTEM": os.devnull,
        }
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main"]
        argv = ["git", *identity, "-C", str(self.root), *arguments]
        return subprocess.run(
            argv, check=True, capture_output=True, text=True, env=environment
        ).stdout.strip()

    def write(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(exist_ok=True)
        (self.root / path).write_text(text)

    def commit(self, path: str, text: str) -> str:
        """Commit a file; the commit."""
        self.time += 1
        self.write(path, text)
        self.git("add", path)
        self.git("commit", "-q", "-m", text)
        return self.git("rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    made = Repository(tmp_path / "project")
    made.root.mkdir()
    made.git("init", "-q")
    return made


def code(text: str) -> tuple[str, str]:
    return "ocfcluster/__init__.py", f"what = '{text}'\n"


def test_the_newest_tag_before_head_is_taken(repository: Repository) -> None:
    repository.commit(*code("1"))
    repository.git("tag", "v1")
    second = repository.commit(*code("2"))
    repository.git("tag", "-a", "v2", "-m", "annotated, so that the tag is no commit")
    repository.commit(*code("3"))
    assert chosen(repository.root) == Revision("v2", second, "the newest tag before HEAD")


def test_a_tag_of_head_itself_or_of_another_branch_is_not_taken(repository: Repository) -> None:
    first = repository.commit(*code("1"))
    repository.git("tag", "v1")
    repository.git("checkout", "-q", "-b", "other")
    repository.commit(*code("other"))
    repository.git("tag", "v9")
    repository.git("checkout", "-q", "main")
    repository.commit(*code("2"))
    repository.git("tag", "v2")
    assert chosen(repository.root).commit == first


def test_without_a_tag_it_is_the_last_commit_with_other_code(repository: Repository) -> None:
    first = repository.commit(*code("1"))
    second = repository.commit(*code("2"))
    repository.commit("README.md", "changes no code")
    assert chosen(repository.root).commit == first
    repository.write("README.md", "a change of no code")
    assert chosen(repository.root).commit == first
    repository.write("ocfcluster/new.py", "")
    assert chosen(repository.root).commit == second, "the code here is other than what is committed"


def test_a_revision_that_is_named_goes_over_the_tag(repository: Repository) -> None:
    first = repository.commit(*code("1"))
    repository.commit(*code("2"))
    repository.git("tag", "v2")
    repository.commit(*code("3"))
    named = chosen(repository.root, "HEAD~2")
    assert (named.commit, first.startswith(named.name)) == (first, True)
    with pytest.raises(NoRevision, match="no revision v7 here"):
        chosen(repository.root, "v7")
    with pytest.raises(NoRevision, match="no revision --all here"):
        chosen(repository.root, "--all")


def test_one_commit_is_not_enough(repository: Repository) -> None:
    repository.commit(*code("1"))
    repository.git("tag", "v1")
    with pytest.raises(NotHere, match="no earlier revision here"):
        chosen(repository.root)


def test_a_shallow_clone_is_not_enough(repository: Repository, tmp_path: Path) -> None:
    repository.commit(*code("1"))
    repository.git("tag", "v1")
    repository.commit(*code("2"))
    repository.git("clone", "-q", "--depth=1", repository.root.as_uri(), str(tmp_path / "clone"))
    with pytest.raises(NotHere, match="no earlier revision here"):
        chosen(tmp_path / "clone")


def test_without_a_history_nothing_is_chosen(repository: Repository, tmp_path: Path) -> None:
    with pytest.raises(NotHere, match="git failed: "):
        chosen(repository.root)  # no commit yet
    with pytest.raises(NotHere, match="not a git repository"):
        chosen(tmp_path)
    repository.commit(*code("1"))
    (repository.root / "unpacked").mkdir()
    with pytest.raises(NotHere, match="no git history of this project"):
        chosen(repository.root / "unpacked")  # an archive unpacked inside of another project's repository


def test_without_git_nothing_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotHere, match="there is no git here"):
        chosen(ROOT)


# --- the other revision's code ----------------------------------------------------------------------------------


def test_a_revision_is_run_with_its_own_code(repository: Repository, tmp_path: Path) -> None:
    """Though this checkout's package is installed where the interpreter looks by itself."""
    repository.commit(*code("1"))
    repository.commit("ocfcluster/other.py", "# new")
    (tmp_path / "code").mkdir()
    unpack(repository.root, chosen(repository.root), tmp_path / "code")
    assert not (tmp_path / "code" / "ocfcluster" / "other.py").exists()
    peer = Ocfcluster("old", "old", tmp_path / "code")
    asked = [*PYTHON, "-c", "import ocfcluster; print(ocfcluster.what)"]
    assert subprocess.check_output(asked, env=peer.environment(), text=True) == "1\n"


def test_agents_run_the_code_of_their_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(Hosts, "popen", lambda self, i, argv, **options: seen.append(options))
    peer = Ocfcluster("old", "old", tmp_path)
    monkeypatch.setattr("tests.cluster.BaseCluster.wait_active", lambda self: None)
    monkeypatch.setattr("tests.cluster.BaseCluster.stop", lambda self: None)
    peer.start(Hosts(3), tmp_path)
    peer.stop()
    assert [(one["cwd"], one["env"]["PYTHONPATH"].split(":")[0]) for one in seen] == [
        (tmp_path, str(tmp_path))
    ] * 3


def test_a_revision_without_the_code_is_said_to_be_so(repository: Repository, tmp_path: Path) -> None:
    commit = repository.commit("README.md", "nothing else yet")
    with pytest.raises(NotHere, match=r"git failed: .*ocfcluster"):
        unpack(repository.root, Revision("x", commit, ""), tmp_path)


# --- what is measured, and said -----------------------------------------------------------------------------------


def test_the_works_are_those_that_are_asked_for() -> None:
    names = [one.name for one in quick.works()]
    assert names == ["64B", "1KiB", "16KiB", "3x64B", "latency"]
    assert all(one.probe >= 7000 for one in quick.works() if isinstance(one, Throughput))
    shown = {one.name for one in COMPARISONS if {one.ours, one.theirs} <= set(names)}
    assert shown == {"64B", "1KiB", "16KiB", "3x64B", "p50", "p99", "cpu", "cpu-1KiB", "cpu-16KiB"}


def result(number: int, rate: float) -> dict[str, Any]:
    return {"round": number, "events_per_s": rate, "cpu_s_per_million": 1000 / rate}


def document(*systems: str) -> dict[str, Any]:
    """As if the first system were half as fast as v1, and a tenth of the floor."""
    rate = {OURS: 50.0, "v1": 100.0, "floor": 500.0}
    raw = {name: {"64B": [result(1, rate[name]), result(2, 2 * rate[name])]} for name in systems}
    return {
        "rounds": 2,
        "ratios": medians(spreads(raw, OURS)),
        "spreads": spreads(raw, OURS),
        "systems": {name: {"title": f"this checkout ({name})"} for name in systems},
        "skipped": {},
        "raw": raw,
        "seconds": 1.0,
    }


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str, gives: Any = None) -> int:
    """``main`` as root, where measuring gives this document, or raises."""

    def measure(*_: Any) -> Any:
        if isinstance(gives, Exception):
            raise gives
        return gives

    monkeypatch.setattr(quick, "chosen", lambda *_: Revision("v1", "c0ffee", "the newest tag before HEAD"))
    monkeypatch.setattr(quick, "measure", measure)
    monkeypatch.setattr(quick.os, "geteuid", lambda: 0)
    monkeypatch.setattr(sys, "argv", ["bench.quick", *arguments])
    return quick.main()


def test_ratios_over_the_revision_and_the_floor_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "quick.json"
    assert run(monkeypatch, "--json", str(file), gives=document(OURS, "v1", "floor")) == 0
    rows = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    assert ["64B", "more", "0.5", "(0.5-0.5)", "0.1", "(0.1-0.1)"] in rows
    assert ["cpu", "less", "2", "(2-2)", "10", "(10-10)"] in rows
    assert ["v1", "is", "the", "newest", "tag", "before", "HEAD.", "Took", "1", "s."] in rows
    assert json.loads(file.read_text())["ratios"]["v1"]["64B"] == 0.5


def test_without_figures_of_the_revision_the_rest_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without = document(OURS, "floor") | {"skipped": {"v1": "an agent ended"}}
    assert run(monkeypatch, gives=without) == 1
    said = capsys.readouterr().out
    assert "0.1 (0.1-0.1)" in said
    assert "v1 was skipped: an agent ended" in said


def test_rounds_that_failed_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = document(OURS, "v1")
    failed["raw"]["v1"]["64B"][1] = {"round": 2, "error": "it hung\nand more"}
    assert run(monkeypatch, gives=failed) == 0
    assert "v1 failed at 64B in 1 of the rounds: it hung\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotHere("no history"), 3),
        (NoRevision("no v7"), 2),
        (RuntimeError("it hung"), 1),
        (OSError("no ip"), 1),
    ],
)
def test_what_goes_wrong_is_one_line_and_an_exit_code(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, gives=error) == code
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", f"bench.quick: {error}\n")


def test_without_root_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(quick.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(sys, "argv", ["bench.quick"])
    assert quick.main() == 3
    assert "need root" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rounds", "0"], "a number from 1 on, not '0'"),
        (["--rounds", "two"], "a number from 1 on, not 'two'"),
        (["--json", "/no/such/folder/x.json"], "cannot be written"),
        (["--json", "/"], "cannot be written"),
        (["v1"], "unrecognized arguments: v1"),
    ],
)
def test_arguments_are_looked_at_before_anything_is_measured(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, *arguments)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


# --- a limit of time ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit_s", "rounds"), [(35.0, 3), (5.0, 1), (1e9, 9)])
def test_no_round_is_begun_that_would_end_too_late(
    limit_s: float, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round of one system and one work takes ten seconds."""
    now = 0.0

    def measured(*_: Any) -> None:
        nonlocal now
        now += 10

    monkeypatch.setattr(comparing.time, "monotonic", lambda: now)
    monkeypatch.setattr(Comparing, "_measure", measured)
    one = Comparing(
        [Ocfcluster()], quick.works()[:1], None, rounds=9, seconds=1, command="", limit_s=limit_s  # type: ignore[arg-type]
    )  # fmt: skip
    assert one._measure_rounds() == rounds
