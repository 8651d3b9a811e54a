"""The simulator can fail: each deliberate mistake is found by the seeds that everybody runs."""

from __future__ import annotations

import pytest

from ocfcluster.simulator.checker import Checker
from ocfcluster.simulator.runner import run_seed
from tests.simulation.mutants import MUTANTS, Mutant

pytestmark = pytest.mark.timeout(300)  # a machine that does other things as well is slow, not wrong

SEEDS = 300


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_the_mistake_is_found(mutant: Mutant):
    with mutant.applied():
        for seed in range(1, SEEDS + 1):
            result = run_seed(seed)
            if result.rule:
                break
    assert result.rule, f"{mutant.mistake}: not found in {SEEDS} seeds"
    assert result.rule in mutant.rules, f"found otherwise: {result.rule}: {result.violation}"
    assert result.tail, "a violation shows the end of its trace"


def test_early_delivery_is_found_by_what_is_held_alone(monkeypatch):
    """Not only by topic changes, which are the first thing delivered and on no disk yet."""
    monkeypatch.setattr(Checker, "_check_topic_durable", lambda *arguments: None)
    for mutant in MUTANTS[:3]:
        with mutant.applied():
            rules = [run_seed(seed).rule for seed in range(1, 11)]
        assert "safe delivery" in rules, mutant.name


def test_without_a_mistake_the_same_seeds_pass():
    for seed in (1, 2, 6):
        assert not run_seed(seed).rule
