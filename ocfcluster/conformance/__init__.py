"""The obligations of the OCF event drafts as checks that run against a live agent (``ocfcluster conformance``).

One module per part of the obligations; each check names its obligation with ``@obligation("A1")`` and is a plain
function of a :class:`~ocfcluster.conformance.context.Context`. Checks run one by one, each in a process of its own
with a time limit, so that a hanging or crashing one spoils no other.
"""

from __future__ import annotations

from ocfcluster.conformance.registry import Check, Result, Verdict, checks, known_obligations
from ocfcluster.conformance.runner import run, run_check

__all__ = ["Check", "Result", "Verdict", "checks", "known_obligations", "run", "run_check"]
