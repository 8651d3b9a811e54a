"""Seeds: a fixed set, so that what worked goes on working, and a fresh one, so that something new is tried."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from ocfcluster.simulator.main import main, replay_command
from ocfcluster.simulator.plan import make_plan
from ocfcluster.simulator.runner import run_seed

pytestmark = pytest.mark.timeout(300)  # a machine that does other things as well is slow, not wrong

FIXED_SEEDS = 100
FRESH_SECONDS = 20.0
LONG_SECONDS = 600.0


def run_for(seconds: float) -> None:
    first = time.time_ns() % 1_000_000_000
    print(f"first seed: {first}")
    end = time.monotonic() + seconds
    seed = first
    while time.monotonic() < end:
        result = run_seed(seed)
        assert not result.rule, f"{result.rule}: {result.violation}; replay: {replay_command(seed, None)}"
        seed += 1
    print(f"{seed - first} seeds")


def test_fixed_seeds():
    events = 0
    faults = set()
    for seed in range(1, FIXED_SEEDS + 1):
        result = run_seed(seed)
        assert not result.rule, f"{result.rule}: {result.violation}; replay: {replay_command(seed, None)}"
        assert result.events == 0 or result.receipts > 0
        events += result.events
        faults |= set(result.faults)
    assert events > 50 * FIXED_SEEDS, "the seeds hardly publish: nothing was tested"
    assert faults >= {
        "loss", "duplication", "reorder", "garbage", "cut", "split", "pause", "kill", "partition", "one way",
        "disk hangs", "subscriber stops", "wall jump", "persist_failed",
    }  # fmt: skip


def test_fresh_seeds():
    run_for(FRESH_SECONDS)


@pytest.mark.long
@pytest.mark.timeout(LONG_SECONDS + 120)
def test_many_fresh_seeds():
    run_for(LONG_SECONDS)


@pytest.mark.parametrize("nodes", [1, 2, 9])
def test_the_size_can_be_fixed(nodes):
    assert len(make_plan(5, nodes).hosts) == nodes
    assert not run_seed(5, nodes).rule


HASH = (
    "from ocfcluster.simulator.runner import run_seed; print([run_seed(s).trace_hash for s in (3, 13, 21)])"
)


def test_a_seed_is_the_same_run_whatever_the_hash_seed():
    hashes = {
        subprocess.run(
            [sys.executable, "-c", HASH],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("0", "1", "4711")
    }
    assert len(hashes) == 1


def test_different_seeds_are_different_runs():
    assert len({run_seed(seed).trace_hash for seed in range(1, 8)}) == 7


def test_the_command_sums_up(capsys):
    assert main(["--first-seed", "3", "--seeds", "2", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["seeds"] == 2
    assert document["violations"] == []
    assert document["events"] > 0


def test_a_violation_is_shown_with_its_trace_and_how_to_replay_it(capsys, monkeypatch):
    from tests.simulation.mutants import MUTANTS

    with MUTANTS[0].applied():
        assert main(["--first-seed", "1", "--seeds", "5"]) == 1
    out = capsys.readouterr().out
    assert "VIOLATED" in out
    assert "replay: ocfcluster sim --first-seed 1 --seeds 1 --trace" in out
    assert "ORDER" in out


def test_a_trace_is_written_line_by_line(capsys):
    assert main(["--first-seed", "1", "--seeds", "1", "--nodes", "2", "--trace"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("HEARTBEAT" in line for line in lines)
    assert any("deliver" in line and "seq 1" in line for line in lines)


def test_wrong_arguments_are_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--nodes", "12"])
    assert stop.value.code == 2
    assert "between 1 and 9" in capsys.readouterr().err
