"""Three agents with a key on three of four hosts, and what attacks them: from the fourth, or beside the first."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.attackers import FLOODED, ON_A_NODE, TOPIC
from tests.keyed import KeyedCluster
from tests.netns.hosts import Hosts

NODES = (1, 2, 3)


class Attacked(KeyedCluster):
    """Its agents are on hosts 1 to 3 of four."""

    def __init__(self, hosts: Hosts, **options: Any) -> None:
        super().__init__(hosts, topics=[TOPIC, FLOODED], **options)
        self.nodes = range(1, 4)  # type: ignore[misc]
        self._config["cluster"]["nodes"] = list(NODES)

    def attack(self, kind: str, seconds: float) -> subprocess.Popen[str]:
        """A program of ``tests.attackers`` that has begun."""
        argv = [sys.executable, "-m", "tests.attackers", kind, "--seconds", str(seconds)]
        if kind in ON_A_NODE:
            attacker = self.popen(1, [*argv, "--socket", self.socket(1)], stdout=subprocess.PIPE, text=True)
        else:
            network = self._config["network"]
            argv += ["--group", network["group"], "--port", str(network["port"])]
            argv += ["--interface", self.hosts.address(4), "--cluster", self._config["cluster"]["name"]]
            attacker = self.popen(4, argv, stdout=subprocess.PIPE, text=True)
        assert attacker.stdout is not None
        assert attacker.stdout.readline() == "ready\n"
        return attacker

    def memory_bytes(self, i: int) -> int:
        """Resident in the agent, without what is shared."""
        text = Path(f"/proc/{self.agent(i).pid}/statm").read_text().split()
        return (int(text[1]) - int(text[2])) * os.sysconf("SC_PAGE_SIZE")
