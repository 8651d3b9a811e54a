"""Measures how many seeds each deliberate mistake takes to be found, from a common first seed.

``python -m tests.simulation.mutants_measure`` measures all; with ``--write`` it also writes the table in
docs/simulator.md and what ``test_mutants`` begins from. Names (or parts of them) choose some.
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

from ocfcluster.simulator.runner import run_seed
from tests.simulation.mutants import MUTANTS, Mutant

FIRST_SEED = 1
SEEDS = 2000
RECORD = Path(__file__).with_name("mutants_found.json")
DOCS = Path(__file__).parents[2] / "docs" / "simulator.md"
HEAD = "| mistake | seeds to find it | found as |"


class Found(NamedTuple):
    """The first seed that finds a mistake, and the rule it breaks there."""

    seed: int
    rule: str
    violation: str = ""


def hunt(mutant: Mutant, first_seed: int, seeds: int, *, compared: bool = True) -> Found | None:
    """Runs seeds until one breaks a rule; ``compared``: that it does not break without the mistake."""
    for seed in range(first_seed, first_seed + seeds):
        with mutant.applied():
            result = run_seed(seed)
        if result.rule and not (compared and run_seed(seed).rule == result.rule):
            return Found(seed, result.rule, result.violation)
    return None


def recorded() -> dict[str, Found]:
    return {name: Found(*found) for name, found in json.loads(RECORD.read_text()).items()}


def record(found: dict[str, Found]) -> None:
    lines = [f"  {json.dumps(name)}: {json.dumps(one[:2])}" for name, one in found.items()]
    RECORD.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def table(found: dict[str, Found]) -> str:
    rows = [HEAD, "|---|---|---|"]
    rows += [
        f"| **{one.name}**: {one.mistake} | {found[one.name].seed - FIRST_SEED + 1} | {found[one.name].rule} |"
        for one in MUTANTS
        if one.name in found
    ]
    return "\n".join(rows)


def write_docs(found: dict[str, Found]) -> None:
    """The new table in the place of the old one."""
    text = DOCS.read_text(encoding="utf-8")
    begin = text.index(HEAD)
    end = text.index("\n\n", begin)
    DOCS.write_text(text[:begin] + table(found) + text[end:], encoding="utf-8")


def _hunt(place: int, first_seed: int, seeds: int) -> tuple[int, Found | None, float]:
    """In a process of its own: the mutant's place in MUTANTS, what was found, and the seconds that it took."""
    began = time.monotonic()
    return place, hunt(MUTANTS[place], first_seed, seeds), time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="of mutants, or parts of them (all)")
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--jobs", type=int, default=2, help="mistakes hunted at a time (2)")
    parser.add_argument("--write", action="store_true", help="the table, and what test_mutants begins from")
    given = parser.parse_args()
    found = recorded() if RECORD.exists() else {}
    chosen = [
        place
        for place, mutant in enumerate(MUTANTS)
        if not given.names or any(name in mutant.name for name in given.names)
    ]
    with ProcessPoolExecutor(given.jobs) as pool:
        hunts = [pool.submit(_hunt, place, given.first_seed, given.seeds) for place in chosen]
        for done in as_completed(hunts):
            place, one, took = done.result()
            mutant = MUTANTS[place]
            fits = "" if one is None or mutant.explains(one.rule) else " (NOT a rule of it)"
            what = "NOT FOUND" if one is None else f"seed {one.seed}, {one.rule}: {one.violation:.120}"
            print(f"{mutant.name}: {what}{fits} in {took:.0f} s", flush=True)
            if one is not None:
                found[mutant.name] = one
    if given.write:
        record({one.name: found[one.name] for one in MUTANTS if one.name in found})
        write_docs(found)


if __name__ == "__main__":
    main()
