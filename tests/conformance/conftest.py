"""The cluster that the conformance tests run against."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster import LoopbackCluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[LoopbackCluster]:
    """Three live agents on loopback multicast; no test leaves a topic or a subscription behind."""
    with LoopbackCluster(3, node={"socket_mode": "0666"}) as started:
        yield started
