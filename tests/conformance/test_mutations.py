"""The checks can fail: each deliberate mistake breaks the checks that are there to find it.

Checks run in children with less patience than usual, so that what never comes is soon missed; one that hangs counts
as broken. The library's mistakes are patched into those children, against agents that are well; the agent's are in
agents of their own.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ocfcluster.conformance import (
    Check,
    Result,
    Verdict,
    checks,
    context,
    known_obligations,
    registry,
    run_check,
)
from tests.cluster import ROOT, LoopbackCluster
from tests.conformance.harness import LoopbackHarness
from tests.conformance.mutant_cluster import MutantCluster
from tests.conformance.mutations import MUTATIONS, Mutation, Side

PATIENCE_S = 2.0
HASTE = 5.0 / registry.TIME_LIMIT_S  # of its usual time, what a check has under a mistake
# What a mutation raises that is itself wrong:
MISTAKEN = re.compile(
    r"(AttributeError|NameError|TypeError|ValueError|IndexError|KeyError|AssertionError|ClusterError)\b"
)


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    """For the directories of clusters whose check was killed."""
    directory = Path(tempfile.mkdtemp(prefix="ocf-mutants-"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def healthy() -> Iterator[LoopbackCluster]:
    """Started as agents with mistakes are, but without one."""
    with MutantCluster(3) as started:
        yield started


def be_impatient() -> None:
    """Have this process's checks wait less for what must come."""
    patience = {"PATIENCE_S": PATIENCE_S, "PATIENCE_MS": int(PATIENCE_S * 1000)}
    for name, module in list(sys.modules.items()):
        if name.startswith("ocfcluster.conformance."):
            vars(module).update({key: value for key, value in patience.items() if hasattr(module, key)})
    context.settles.__defaults__ = (PATIENCE_S,)
    context.Background.result.__defaults__ = (PATIENCE_S,)


def run(
    check: Check, cluster: LoopbackCluster, scratch: Path, apply: Callable[[], None] | None,
    own: Callable[..., LoopbackCluster] = MutantCluster,
) -> Result:  # fmt: skip
    """One check with ``apply`` called in its process first."""

    def prepare() -> None:
        tempfile.tempdir = str(scratch)
        be_impatient()
        if apply is not None:
            apply()

    others = tuple(cluster.socket(i) for i in cluster.nodes if i != 1)
    limit = check._replace(time_limit_s=HASTE * check.time_limit_s)
    return run_check(limit, cluster.socket(1), others=others, harness=LoopbackHarness(own), prepare=prepare)


def assert_found(mutation: Mutation, results: list[Result]) -> None:
    for result in results:
        skip_without_root(result)
        assert result.verdict is Verdict.BROKEN, (
            f"{mutation.text} -- {result.check} did not find it: {result}"
        )
        assert not MISTAKEN.match(result.detail), f"the mutation itself is wrong: {result.detail}"


def skip_without_root(result: Result) -> None:
    if result.verdict is Verdict.NOT_RUN and "needs root" in result.detail and os.geteuid() != 0:
        pytest.skip(result.detail)


def of(mutation: Mutation) -> list[Check]:
    """The checks of the mutation's obligation that must find it."""
    found_by = [check for check in checks() if check.obligation == mutation.obligation]
    return [check for check in found_by if check.name in mutation.found_by]


def those(side: Side) -> list[Mutation]:
    return [mutation for mutation in MUTATIONS.values() if mutation.side is side]


def name_of(mutation: Mutation) -> str:
    return f"{mutation.obligation}-{mutation.name}"


@pytest.mark.parametrize("obligation", known_obligations())
def test_without_a_mistake_all_checks_hold(obligation: str, healthy: LoopbackCluster, scratch: Path) -> None:
    wanted = [check for check in checks() if check.obligation == obligation]
    broken = [
        result
        for result in (run(check, healthy, scratch, None) for check in wanted)
        if result.verdict is not Verdict.HELD
    ]
    if broken:
        skip_without_root(broken[0])
    assert not broken


@pytest.mark.parametrize("mutation", those(Side.CLIENT), ids=name_of)
def test_a_mistake_of_the_library_is_found(
    mutation: Mutation, healthy: LoopbackCluster, scratch: Path
) -> None:
    assert_found(mutation, [run(check, healthy, scratch, mutation.apply) for check in of(mutation)])


@pytest.mark.parametrize("mutation", those(Side.AGENT), ids=name_of)
def test_a_mistake_of_the_agent_is_found(mutation: Mutation, healthy: LoopbackCluster, scratch: Path) -> None:
    def mutant(n: int, **config: Any) -> MutantCluster:
        return MutantCluster(n, mutation.name, mutation.wrong, **config)

    if not mutation.agents:
        results = [run(check, healthy, scratch, None, mutant) for check in of(mutation)]
    else:
        with MutantCluster(mutation.agents, mutation.name, mutation.wrong) as cluster:
            results = [run(check, cluster, scratch, None) for check in of(mutation)]
    assert_found(mutation, results)


def test_every_check_is_broken_by_some_mistake() -> None:
    found = {(mutation.obligation, name) for mutation in MUTATIONS.values() for name in mutation.found_by}
    assert found == {(check.obligation, check.name) for check in checks()}


def test_mutations_say_what_is_wrong_and_stand_in_the_table() -> None:
    table = (ROOT / "docs" / "conformance.md").read_text("utf-8")
    for mutation in MUTATIONS.values():
        found_by = ", ".join(f"`{name}`" for name in mutation.found_by)
        row = f"| {mutation.obligation} | `{mutation.name}` | {mutation.side.value} | {mutation.text} | {found_by} |"
        assert mutation.text
        assert row in table, f"docs/conformance.md lacks the row {row}"
