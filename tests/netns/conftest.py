"""Tests marked ``netns`` are skipped where hosts cannot be made, or fail there if OCFCLUSTER_REQUIRE says netns."""

from __future__ import annotations

import functools
import os

import pytest

from tests.netns import hosts


@functools.cache
def _unavailable() -> str:
    return hosts.unavailable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("netns") is None or not _unavailable():
        return
    if "netns" in os.environ.get("OCFCLUSTER_REQUIRE", "").replace(" ", "").split(","):
        pytest.fail(f"netns is required, but {_unavailable()}", pytrace=False)
    pytest.skip(_unavailable())
