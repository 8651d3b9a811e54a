"""Runs checks, each in a child process of its own with a time limit."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn

from ocfcluster.conformance.context import Context, Harness, NotRun, Violation
from ocfcluster.conformance.registry import Check, Result, Verdict, checks


def run(
    socket: str,
    *,
    others: tuple[str, ...] = (),
    harness: Harness | None = None,
    only: Iterable[str] | None = None,
) -> list[Result]:
    """The results of all checks against the agent at ``socket``, in the order of the obligations.

    ``others`` are sockets of agents of other nodes of its cluster; ``harness`` starts agents for the checks that end
    them; without one these are "not run". ``only`` names obligations.
    """
    wanted = None if only is None else set(only)
    return [
        run_check(check, socket, others=others, harness=harness)
        for check in checks()
        if wanted is None or check.obligation in wanted
    ]


def run_check(
    check: Check,
    socket: str,
    *,
    others: tuple[str, ...] = (),
    harness: Harness | None = None,
    prepare: Callable[[], None] | None = None,
) -> Result:
    """One check in a forked child, so that it has a process-wide client of its own and may hang or crash.

    ``prepare`` is called in the child before the check.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    began = time.monotonic()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            os.setpgid(0, 0)
            _child(check, Context(socket, others, harness), prepare, writing)
        finally:  # whatever happens, there must not be two of the caller
            os._exit(1)
    os.close(writing)
    with contextlib.suppress(OSError):
        os.setpgid(child, child)  # the child does it too: whoever is first
    said: bytes | None = None
    try:
        said = _read_within(reading, check.time_limit_s)
    finally:
        reaped = _reap(child, 0.5 if said is not None else 0.0)
        with contextlib.suppress(OSError):
            os.killpg(child, signal.SIGKILL)  # with what the check itself has forked
        if not reaped:
            os.waitpid(child, 0)
        os.close(reading)
    verdict, detail = _judge(said, check.time_limit_s)
    return Result(check.obligation, check.name, verdict, detail, round(time.monotonic() - began, 3))


def _child(check: Check, context: Context, prepare: Callable[[], None] | None, writing: int) -> NoReturn:
    """Never returns. Threads of the library may still run, so the end is abrupt once the verdict is written."""
    verdict, detail = Verdict.HELD, ""
    try:
        if prepare is not None:
            prepare()
        with context:
            check.body(context)
    except NotRun as reason:
        verdict, detail = Verdict.NOT_RUN, str(reason)
    except Violation as violation:
        verdict, detail = Verdict.BROKEN, str(violation)
    except BaseException as error:  # noqa: BLE001 - whatever a check raises is its verdict
        verdict, detail = Verdict.BROKEN, f"{type(error).__name__}: {error} at {_place(error)}"
    os.write(writing, json.dumps([verdict.value, detail[:1500]]).encode())
    os.close(writing)
    os._exit(0)


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/conformance/" in frame.filename] or frames
    return " < ".join(f"{os.path.basename(frame.filename)}:{frame.lineno}" for frame in reversed(ours[-3:]))


def _read_within(descriptor: int, seconds: float) -> bytes | None:
    """All bytes up to the end of the pipe, or None where the time ran out."""
    deadline = time.monotonic() + seconds
    pieces: list[bytes] = []
    while True:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return None
        piece = os.read(descriptor, 65_536)
        if not piece:
            return b"".join(pieces)
        pieces.append(piece)
        if piece.endswith(b"]"):  # a grandchild may hold the pipe open beyond the verdict
            return b"".join(pieces)


def _reap(child: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if os.waitpid(child, os.WNOHANG)[0] == child:
            return True
        time.sleep(0.002)
    return False


def _judge(said: bytes | None, time_limit_s: float) -> tuple[Verdict, str]:
    if said is None:
        return Verdict.BROKEN, f"it hangs: no end within {time_limit_s:g} s"
    if not said:
        return Verdict.BROKEN, "the process of the check ended without a word (it crashed)"
    words: Sequence[str] = json.loads(said)
    return Verdict(words[0]), words[1]
