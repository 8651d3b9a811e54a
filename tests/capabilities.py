"""What this machine can run: each check gives None, or in a few words why not.

A missing capability skips the tests that need it, and says so. Where OCFCLUSTER_REQUIRE names it (`docker,netns` in
CI) it is a failure instead, so that nothing goes untested there unnoticed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

PROBE_TIMEOUT_S = 20


@cache
def missing_netns() -> str | None:
    """Why no hosts can be made out of network namespaces here."""
    if os.geteuid() != 0:
        return "needs root"
    if not Path("/dev/net/tun").exists():
        return "needs /dev/net/tun (modprobe tun)"
    for tool, package in (("ip", "iproute2"), ("nft", "nftables")):
        if shutil.which(tool) is None:
            return f"needs `{tool}` (apt-get install {package})"
    return _failure(["unshare", "--net", "true"], "may not make network namespaces")


@cache
def missing_docker() -> str | None:
    """Why no clusters of containers can be made here."""
    if shutil.which("docker") is None:
        return "needs Docker (apt-get install docker.io)"
    if os.geteuid() != 0:
        return "needs root, to reach into the containers' networks"
    for tool, package in (("debootstrap", "debootstrap"), ("nsenter", "util-linux"), ("nft", "nftables")):
        if shutil.which(tool) is None:
            return f"needs `{tool}` (apt-get install {package})"
    return _failure(["docker", "info"], "needs a running Docker daemon that this user may use")


CAPABILITIES: dict[str, Callable[[], str | None]] = {"netns": missing_netns, "docker": missing_docker}


def required() -> frozenset[str]:
    """The capabilities that OCFCLUSTER_REQUIRE names. Raises ValueError on one that there is not."""
    names = frozenset(filter(None, os.environ.get("OCFCLUSTER_REQUIRE", "").replace(" ", "").split(",")))
    unknown = names - CAPABILITIES.keys()
    if unknown:
        raise ValueError(
            f"OCFCLUSTER_REQUIRE names {', '.join(sorted(unknown))}; there are {', '.join(CAPABILITIES)}"
        )
    return names


def _failure(command: list[str], reason: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, timeout=PROBE_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return reason
    return None if done.returncode == 0 else reason
