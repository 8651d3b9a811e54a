"""Agents without a membership component of their own, each with the one that docs/publishers.md shows beside it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ocfcluster.errors import ClientError
from tests.cluster import ROOT, LoopbackCluster


def example() -> str:
    """The program in docs/publishers.md."""
    text = (ROOT / "docs" / "publishers.md").read_text("utf-8")
    (program,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return str(program)


class ExternalCluster(LoopbackCluster):
    """``mutate`` changes the program's text: a component with a mistake."""

    def __init__(self, n: int, *, mutate: Callable[[str], str] = str, **config: Mapping[str, Any]) -> None:
        config["components"] = {"membership": "external", **config.get("components", {})}
        super().__init__(n, **config)
        self._program = self.directory / "membership.py"
        self._program.write_text(mutate(example()), "utf-8")
        self.components: dict[int, subprocess.Popen[bytes]] = {}

    def component_log(self, i: int) -> Path:
        return self.directory / f"{i}.component.log"

    def start_agent(self, i: int) -> None:
        """The agent, and its component if that does not run."""
        super().start_agent(i)
        if i not in self.components:
            self.start_component(i)

    def start_component(self, i: int) -> None:
        with self.component_log(i).open("ab") as log:
            self.components[i] = self.popen(
                i, [sys.executable, str(self._program), self.socket(i)], stdout=log, stderr=log
            )

    def kill_component(self, i: int) -> None:
        component = self.components.pop(i)
        component.send_signal(signal.SIGKILL)
        component.wait()

    def wait_present(self, i: int, present: bool = True, timeout_s: float = 10.0) -> dict[str, Any]:
        """Until the agent says that its component is there, or not; what it says of it."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                said: dict[str, Any] = self.status(i)["components"]["membership"]
            except ClientError:
                said = {}
            if said.get("present") is present:
                return said
            assert time.monotonic() < deadline, f"{said}\n{self.component_log(i).read_text()}"
            time.sleep(0.02)

    def _end(self) -> dict[int, int]:
        codes = super()._end()
        for component in self.components.values():
            component.terminate()
        for component in self.components.values():
            try:
                component.wait(5)
            except subprocess.TimeoutExpired:
                component.kill()
                component.wait()
        return codes
