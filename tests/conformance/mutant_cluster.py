"""A cluster some of whose agents have a deliberate mistake."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

from tests.cluster import LoopbackCluster
from tests.conformance.mutant_agent import NO_MISTAKE


class MutantCluster(LoopbackCluster):
    """All agents come from mutant_agent.py: those of the nodes ``wrong`` with the mutation ``name``.

    It goes without a word however its agents end: what they do is what the checks are about.
    """

    def __init__(
        self, n: int, name: str = NO_MISTAKE, wrong: Iterable[int] = (), **config: Mapping[str, Any]
    ) -> None:
        super().__init__(n, **{"node": {"socket_mode": "0666"}, **config})
        self._name = name
        self._wrong = frozenset(wrong)

    def popen(self, i: int, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        name = self._name if i in self._wrong else NO_MISTAKE
        begin = [sys.executable, "-m", "ocfcluster", "agent"]
        assert list(argv[: len(begin)]) == begin
        launcher = [sys.executable, "-m", "tests.conformance.mutant_agent", name]
        return super().popen(i, [*launcher, *argv[len(begin) :]], **options)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        shutil.rmtree(self.directory, ignore_errors=True)
