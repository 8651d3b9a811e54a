"""What all tests share: capabilities of the machine, Hypothesis' settings, and no agent but a test's own."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

from tests.capabilities import CAPABILITIES, required

settings.register_profile(
    "here",
    deadline=None,  # two shared cores: a slow moment is no finding
    derandomize="CI" in os.environ,  # there the same examples each time; at home new ones
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("here")


def pytest_configure() -> None:
    # A test talks to the agent that it started, never to one that happens to run on this machine.
    os.environ.pop("OCFCLUSTER_SOCKET", None)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for name, missing in CAPABILITIES.items():
        if item.get_closest_marker(name) is None:
            continue
        reason = missing()
        if reason is None:
            continue
        if name in required():
            pytest.fail(f"{name} is required here (OCFCLUSTER_REQUIRE) and {reason}", pytrace=False)
        pytest.skip(reason)
