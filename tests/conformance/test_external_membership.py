"""The obligations on membership events, held by an external component: the program that docs/publishers.md shows.

Left out: that views come before the events ordered in them. An agent does not wait for its component
(docs/publishers.md says so), so nobody can promise that.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ocfcluster.conformance import Check, Verdict, checks, run_check
from tests.conformance.harness import LoopbackHarness
from tests.external import ExternalCluster

NOT_PROMISED = "views_come_before_the_events_in_them"
APPLY = [
    check for check in checks() if check.obligation in {"M1", "M2", "M3", "M4"} and check.name != NOT_PROMISED
]


@pytest.fixture(scope="module")
def external() -> Iterator[ExternalCluster]:
    with ExternalCluster(3) as cluster:
        yield cluster


@pytest.mark.parametrize("check", APPLY, ids=lambda check: f"{check.obligation}-{check.name}")
def test_obligation(check: Check, external: ExternalCluster) -> None:
    others = (external.socket(2), external.socket(3))
    result = run_check(check, external.socket(1), others=others, harness=LoopbackHarness(ExternalCluster))
    assert result.verdict is Verdict.HELD, f"{check.text} -- {result.detail}"


def test_a_mistake_of_the_component_is_found() -> None:
    """So it is the component's events that are looked at: one that leaves out who joined breaks the checks."""
    with ExternalCluster(1, mutate=lambda text: text.replace("nodes(view.members), ", "(), ")) as cluster:
        check = next(one for one in APPLY if one.name == "fields_of_the_drafts_struct")
        result = run_check(check, cluster.socket(1))
    assert result.verdict is Verdict.BROKEN
    assert "the local node is not among the members" in result.detail
