"""The simulator can fail: each deliberate mistake is found by the seeds that everybody runs.

How many of them it takes is measured from one first seed for all (``mutants_measure``, and here where marked ``long``);
here each begins with the seed that found it, but for those that take hundreds: they move with every change.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from ocfcluster.simulator.memory import Memory
from ocfcluster.simulator.runner import run_seed
from ocfcluster.simulator.trace import Violation
from tests.simulation.mutants import MUTANTS, SCRIPTS, SELDOM, Mutant
from tests.simulation.mutants_measure import FIRST_SEED, SEEDS, hunt, recorded, table

pytestmark = pytest.mark.timeout(300)  # a machine that does other things as well is slow, not wrong

MOST = 150
AGAIN = "python -m tests.simulation.mutants_measure --write measures anew"


def _named(mutant: Mutant) -> str:
    return mutant.name.replace(" ", "-")


@pytest.mark.parametrize("mutant", [one for one in MUTANTS if recorded()[one.name].seed <= MOST], ids=_named)
def test_the_mistake_is_found(mutant: Mutant):
    first = recorded()[mutant.name].seed
    # The protocol goes on, and then its seeds do something else: who was seldom found may take some more of them.
    found = hunt(mutant, first, min(12 + 4 * first, 150), compared=False)
    assert found is not None, f"{mutant.mistake}: not found by seeds from {first} on; {AGAIN}"
    assert mutant.explains(found.rule), f"found otherwise: {found}"


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("mutant", MUTANTS, ids=_named)
def test_the_mistake_is_found_from_the_common_first_seed(mutant: Mutant):
    found = hunt(mutant, FIRST_SEED, SEEDS)
    assert found is not None, f"{mutant.mistake}: not found in {SEEDS} seeds"
    assert mutant.explains(found.rule), f"found otherwise: {found}"
    print(f"{mutant.name}: {found.seed - FIRST_SEED + 1} seeds, {found.rule}")


@pytest.mark.parametrize("mutant", SELDOM, ids=_named)
def test_a_mistake_that_seeds_seldom_reach_fails_its_script(mutant: Mutant, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OCFCLUSTER_REWRITE", raising=False)
    SCRIPTS[mutant.name]()
    with mutant.applied(), pytest.raises((AssertionError, TimeoutError, Violation)):
        SCRIPTS[mutant.name]()


def test_the_table_in_the_docs_is_what_was_measured():
    text = Path(__file__).parents[2].joinpath("docs", "simulator.md").read_text(encoding="utf-8")
    missing = [row for row in table(recorded()).splitlines() if row not in text]
    assert not missing, f"not in docs/simulator.md: {missing}; {AGAIN}"


def test_a_violation_shows_the_end_of_its_trace():
    with MUTANTS[0].applied():
        assert run_seed(FIRST_SEED).tail


def test_early_delivery_is_found_by_what_is_held_alone(monkeypatch):
    """Not only by topic changes, which are the first thing delivered and on no disk yet."""
    monkeypatch.setattr(Memory, "check_durable", lambda *arguments: None)
    monkeypatch.setattr(Memory, "check_freed", lambda *arguments: None)
    for mutant in MUTANTS[:3]:
        with mutant.applied():
            rules = [run_seed(seed).rule for seed in range(1, 11)]
        assert "safe delivery" in rules, mutant.name


def test_without_a_mistake_the_same_seeds_pass():
    for seed in (1, 2, 6):
        assert not run_seed(seed).rule
