"""The simulator can fail: each deliberate mistake is found by the seeds that everybody runs."""

from __future__ import annotations

import pytest

from ocfcluster.simulator.runner import run_seed
from tests.simulation.mutants import MUTANTS, Mutant

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


def test_without_a_mistake_the_same_seeds_pass():
    for seed in (1, 2, 6):
        assert not run_seed(seed).rule
