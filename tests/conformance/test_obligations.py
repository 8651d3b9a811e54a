"""Every check of the conformance suite against a live three-node cluster, named after its obligation."""

from __future__ import annotations

import os

import pytest

from ocfcluster.conformance import Check, Verdict, checks, known_obligations, run_check
from tests.cluster import LoopbackCluster
from tests.conformance.harness import LoopbackHarness

IN_SCOPE = {
    *(f"A{number}" for number in range(1, 17)), *(f"E{number}" for number in range(1, 6)),
    *(f"M{number}" for number in range(1, 5)), "S1", "S2", "S3", "S4", "F1", "C1", "P1", "G1",
}  # fmt: skip


@pytest.mark.parametrize("check", checks(), ids=lambda check: f"{check.obligation}-{check.name}")
def test_obligation(check: Check, cluster: LoopbackCluster) -> None:
    result = run_check(
        check, cluster.socket(1), others=(cluster.socket(2), cluster.socket(3)), harness=LoopbackHarness()
    )
    if result.verdict is Verdict.NOT_RUN and "needs root" in result.detail and os.geteuid() != 0:
        pytest.skip(result.detail)
    assert result.verdict is Verdict.HELD, f"{check.text} -- {result.detail}"


def test_every_obligation_in_scope_has_a_check() -> None:
    assert set(known_obligations()) == IN_SCOPE


def test_checks_say_what_they_state() -> None:
    assert all(check.body.__doc__ for check in checks())


def test_without_other_nodes_or_harness_checks_are_not_run(cluster: LoopbackCluster) -> None:
    wanted = [check for check in checks() if check.name in {"every_node_delivers", "shutdown_is_told"}]
    results = [run_check(check, cluster.socket(1)) for check in wanted]
    assert [result.verdict for result in results] == [Verdict.NOT_RUN, Verdict.NOT_RUN]
    assert all("needs" in result.detail for result in results)
