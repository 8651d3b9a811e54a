"""Seeds: a fixed set, so that what worked goes on working, and a fresh one, so that something new is tried."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from ocfcluster.simulator.main import Summary, main, replay_command
from ocfcluster.simulator.plan import FAULT_KINDS, make_plan
from ocfcluster.simulator.runner import COUNTS, run_seed

pytestmark = pytest.mark.timeout(300)  # a machine that does other things as well is slow, not wrong

FIXED_SEEDS = 200
CHUNK = 50
FRESH_SECONDS = 20.0
LONG_SECONDS = 600.0
# Found by series of fresh seeds, in the protocol, in the programs' side or in the simulator itself.
ONCE_BROKEN = (
    862, 2000501, 2000662, 3000690, 3001039, 3001769, 4000225, 5000163, 6000306, 7001393, 7001512, 9001382, 20000357,
    30000342, 30000378, 33000014, 33000119, 35000184, 43000305, 43000430, 44000235, 50001577, 51000027,
    52000475, 52000789, 60001069, 62000489, 65005585, 71000069,
)  # fmt: skip


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


@pytest.mark.parametrize("first", range(1, FIXED_SEEDS, CHUNK))
def test_fixed_seeds(first):
    """Every promise is kept, and enough happens for that to mean something: recovery was needed, under load."""
    total = Summary(first, None)
    for seed in range(first, first + CHUNK):
        result = run_seed(seed)
        assert not result.rule, f"{result.rule}: {result.violation}; replay: {replay_command(seed, None)}"
        total.add(result)
    epochs, faults, events = COUNTS
    assert total.median("epochs") >= epochs
    assert total.median("faults") >= faults
    assert total.median("events") >= events
    assert total.counts > CHUNK * 2 // 5
    assert set(total.incidents) == {*(kind for kind, _ in FAULT_KINDS), "wipe"}
    assert set(total.noise) >= {
        "loss", "duplication", "reorder", "garbage", "cut", "split", "persist_failed", "stream lost",
        "not_primary", "primary_restored",
    }  # fmt: skip
    for name in ("views", "evictions", "snapshots", "unknown", "receipts"):
        assert total.total(name) > 0, name
    assert total.total("histories") > CHUNK, "no history ended"


@pytest.mark.parametrize("seed", ONCE_BROKEN)
def test_seeds_that_once_broke_a_promise(seed):
    result = run_seed(seed)
    assert not result.rule, f"{result.rule}: {result.violation}; replay: {replay_command(seed, None)}"


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


HASH = "from ocfcluster.simulator.runner import run_seed; print([run_seed(s).trace_hash for s in (2, 7, 15)])"


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
    assert document["epochs"] >= document["histories"] >= 2


def test_several_seeds_at_a_time_are_the_same_runs(capsys):
    documents = []
    for jobs in ("1", "2"):
        assert main(["--first-seed", "11", "--seeds", "4", "--json", "--jobs", jobs]) == 0
        document = json.loads(capsys.readouterr().out)
        del document["elapsed_s"]
        documents.append(document)
    assert documents[0] == documents[1]


def test_told_to_end_all_of_its_processes_do():
    command = [sys.executable, "-m", "ocfcluster", "sim", "--seeds", "100000", "--jobs", "2"]
    running = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    time.sleep(3)
    running.send_signal(signal.SIGTERM)
    running.wait(60)
    # The others have its standard error open: it ends when they do.
    running.communicate(timeout=60)
    with pytest.raises(ProcessLookupError):
        os.killpg(running.pid, signal.SIGKILL)


def test_a_violation_is_shown_with_its_trace_and_how_to_replay_it(capsys, monkeypatch):
    from tests.simulation.mutants import MUTANTS

    with MUTANTS[0].applied():
        assert main(["--first-seed", "1", "--seeds", "5"]) == 1
    out = capsys.readouterr().out
    assert "VIOLATED" in out
    assert "replay: ocfcluster sim --first-seed 1 --seeds 1 --trace" in out
    assert "deliver" in out


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
