"""An agent that writes down when it went from one phase of an epoch change to the next.

    python -m bench.phases FILE --config CONFIG     # FILE, then what ``ocfcluster agent`` takes

Each line of FILE is a JSON array: nanoseconds of CLOCK_MONOTONIC, the phase, and what it is about:

| phase | |
|---|---|
| suspects | this node does not count the sequencer as alive any more |
| prepare | it begins an epoch change: why |
| sync, accept | promises are enough; members of the new view hold its base |
| decided | the new view is accepted by enough |
| installed | it is on this node's disk, and in force |
| view, first | its view was delivered to subscribers; the first run behind it |
| disk | a write of the state directory took so many ns (the time of the line is its end) |
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec

from ocfcluster.agent.router import Router
from ocfcluster.agent.state_dir import StateDirectory
from ocfcluster.protocol.detector import Detector
from ocfcluster.protocol.effects import Delivery, View
from ocfcluster.protocol.proposer import Proposer
from ocfcluster.protocol.recovery import Recovery
from ocfcluster.protocol.settings import Configuration


class Stamps:
    """Writes lines, each with one system call."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)

    def __call__(self, phase: str, about: object = "") -> None:
        os.write(self._file, msgspec.json.encode([time.monotonic_ns(), phase, about]) + b"\n")


def patch(stamp: Stamps) -> None:
    """Have the parts of the agent call ``stamp``."""
    before(Proposer, "begin", lambda *_, **fields: stamp("prepare", fields.get("reason", "")))
    before(Proposer, "_sync", lambda *_, **__: stamp("sync"))
    before(Proposer, "_accept", lambda *_: stamp("accept"))
    before(Recovery, "decided", lambda _, value, __: stamp("decided", value.epoch))
    before(Recovery, "installed", lambda recovery, _: stamp("installed", recovery.instance.epoch))

    alive = Detector.sequencer_alive
    trusted = True

    def looked(detector: Detector, configuration: Configuration, resigned: bool, now: int) -> bool:
        nonlocal trusted
        before, trusted = trusted, alive(detector, configuration, resigned, now)
        if before and not trusted:
            stamp("suspects", configuration.epoch)
        return trusted

    Detector.sequencer_alive = looked  # type: ignore[method-assign]

    deliver = Router.deliver
    waits = False

    def delivered(router: Router, items: Any) -> None:
        nonlocal waits
        views = [item for item in items if type(item) is View]
        deliver(router, items)
        if views:
            stamp("view", views[-1].configuration.epoch)
            waits = True
        if waits and any(type(item) is Delivery for item in items):
            waits = False
            stamp("first")

    Router.deliver = delivered  # type: ignore[method-assign]

    write = StateDirectory.write_record

    def written(directory: StateDirectory, body: bytes) -> None:
        began = time.monotonic_ns()
        write(directory, body)
        stamp("disk", time.monotonic_ns() - began)

    StateDirectory.write_record = written  # type: ignore[method-assign]


def before(part: type, name: str, what: Callable[..., None]) -> None:
    """Call ``what`` with the arguments of the method each time before it runs."""
    method = getattr(part, name)

    def both(*arguments: Any, **fields: Any) -> Any:
        what(*arguments, **fields)
        return method(*arguments, **fields)

    setattr(part, name, both)


if __name__ == "__main__":
    patch(Stamps(sys.argv[1]))
    from ocfcluster.cli import main

    main(["agent", *sys.argv[2:]])
