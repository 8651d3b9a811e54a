"""What the tests on containers share: the image, and clusters that are always taken down."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from integration import image as images
from integration.cluster import ContainerCluster
from integration.collect import collect
from tests.capabilities import missing_docker, required

ARCHIVES = images.ROOT / "build" / "integration"
_failed = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    item.stash[_failed] = item.stash.get(_failed, False) or report.failed
    return report


def pytest_runtest_setup(item: pytest.Item) -> None:
    """All that is here needs Docker."""
    reason = missing_docker()
    if reason is not None and "docker" in required():
        pytest.fail(f"docker is required here (OCFCLUSTER_REQUIRE) and {reason}", pytrace=False)
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def image() -> str:
    """The image, built from the source as it is."""
    return images.build()


@pytest.fixture(scope="session")
def next_image(image: str) -> str:
    """The same, speaking a protocol version more and writing a version of the record more."""
    return images.build_next(image)


@pytest.fixture
def cluster(
    image: str, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Callable[..., ContainerCluster]]:
    """``cluster(n, ...)`` is a ContainerCluster that runs; whatever happens it is removed in the end.

    A test that fails leaves an archive of logs, status, configurations and traces, and prints where it is.
    """
    with ExitStack() as stack:

        def make(n: int, *, started: bool = True, **options: Any) -> ContainerCluster:
            made = ContainerCluster(n, image, **options)
            stack.callback(made.close)
            stack.callback(keep, made)  # before it is closed
            if started:
                made.start()
            return made

        def keep(made: ContainerCluster) -> None:
            if request.node.stash.get(_failed, False):
                name = re.sub(r"[^\w.-]+", "_", request.node.name)
                path = collect(
                    ARCHIVES / f"{name}.tar.gz", made.agents(), {"traces": tmp_path, "": made.directory}
                )
                print(f"\nlogs, status, configurations and traces of this test are in {path}")

        yield make
