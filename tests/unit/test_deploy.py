"""What deploy/ gives to hosts: the unit is as closed as it says, and agrees with the agent."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ocfcluster import limits
from ocfcluster.agent import incarnations, main
from tests.cluster import ROOT

DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "ocfcluster.service"
EXPOSURE_MOST = 20  # tenths, of 100; systemd calls 0 to 49 OK


def settings(file: Path) -> dict[str, str]:
    lines = (line.partition("=") for line in file.read_text().splitlines() if not line.startswith("#"))
    return {key.strip(): value.strip() for key, _, value in lines}


def test_the_unit_is_closed() -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze (apt-get install systemd)")
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", f"--threshold={EXPOSURE_MOST}"]
    done = subprocess.run([*command, str(UNIT)], capture_output=True, text=True)
    if "unrecognized option" in done.stderr:
        pytest.skip("needs systemd 250 or newer")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_unit_is_one_that_systemd_reads(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze (apt-get install systemd)")
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/ocfcluster/bin/ocfcluster", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
    assert not done.stderr.strip(), done.stderr  # an unknown key is a warning there, and no more
    assert done.returncode == 0


def test_the_unit_agrees_with_the_agent() -> None:
    unit = settings(UNIT)
    assert set(map(int, unit["RestartPreventExitStatus"].split())) == {
        main.EXIT_CONFIGURATION, incarnations.EXIT_EVICTED,
    }  # fmt: skip
    assert unit["Type"] == "notify"
    assert int(unit["TimeoutStopSec"]) > 2 * limits.LEAVE_TIMEOUT_NS / limits.SECOND_NS
    assert "PrivateUsers" not in unit  # clients' credentials would all look alike


def test_the_users_file_names_the_units_user(tmp_path: Path) -> None:
    user = re.search(r"^u (\S+) ", (DEPLOY / "ocfcluster.sysusers.conf").read_text(), re.MULTILINE)
    assert user is not None
    unit = settings(UNIT)
    assert unit["User"] == unit["Group"] == user[1]
    line = (DEPLOY / "ocfcluster.tmpfiles.conf").read_text().splitlines()[-1].split()
    assert line[:5] == [
        "d",
        f"/run/{unit['RuntimeDirectory']}",
        unit["RuntimeDirectoryMode"],
        user[1],
        user[1],
    ]


def test_the_kernel_may_grant_what_the_agent_asks_for() -> None:
    granted = settings(DEPLOY / "ocfcluster.sysctl.conf")
    assert int(granted["net.core.rmem_max"]) >= limits.RECEIVE_BUFFER_BYTES
    assert int(granted["net.core.wmem_max"]) >= limits.SEND_BUFFER_BYTES
