"""Compares a scenario's transcript with the file of its name in expected/.

``OCFCLUSTER_REWRITE=1 pytest tests/scenarios`` writes the files anew; read the difference before it is committed.
"""

from __future__ import annotations

import os
from pathlib import Path

from ocfcluster.simulator.scenario import Scenario

EXPECTED = Path(__file__).parent / "expected"


def check(scenario: Scenario, name: str) -> None:
    path = EXPECTED / f"{name}.txt"
    transcript = scenario.transcript
    if os.environ.get("OCFCLUSTER_REWRITE"):
        path.write_text(transcript)
    assert path.is_file(), f"{path.name} is missing: run once with OCFCLUSTER_REWRITE=1"
    assert transcript == path.read_text()
