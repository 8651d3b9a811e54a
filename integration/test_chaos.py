"""A short chaos run, with another seed each time; and its report."""

from __future__ import annotations

import json
import random
import tarfile
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

import integration.chaos
from integration.chaos import chaos
from integration.conftest import ARCHIVES
from integration.faults import ContainerDrill
from integration.timeline import Timeline, draw, longest_pause
from integration.work import Done
from tests.netns import faults
from tests.netns.faults import Fault
from tests.netns.traces import Began, Got, Writer

pytestmark = [pytest.mark.docker]

SECONDS = 180  # while other tests run beside it


def run(image: str, minutes: float, nodes: int) -> None:
    seed = random.SystemRandom().randrange(1_000_000)
    print(f"python -m integration.chaos --seed {seed} --minutes {minutes} --nodes {nodes}")
    directory = ARCHIVES / f"chaos-{nodes}"
    report = chaos(seed, minutes, nodes, directory, image)
    print(report.text())
    assert not report.error, f"seed {seed}: {report.text()}"
    assert sum(report.faults.values()) >= 1  # on a machine that does much else there is time for no more
    assert report.events > 1000
    assert json.loads((directory / "report.json").read_text())["seed"] == seed
    ET.parse(directory / "report.svg")


@pytest.mark.timeout(420)
def test_a_short_chaos_run_shows_no_violation(image: str) -> None:
    run(image, SECONDS / 60, 3)


@pytest.mark.long
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("nodes", [3, 5])
def test_a_longer_one(nodes: int, image: str) -> None:
    run(image, 10.0, nodes)


def test_what_goes_wrong_is_reported_with_an_archive(
    image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forget_it(drill: ContainerDrill, victim: int) -> None:
        drill.containers.kill(victim)  # and nobody starts it again

    monkeypatch.setattr(faults, "BACK_S", 3.0)
    monkeypatch.setattr(integration.chaos, "choose", lambda chance: Fault("forget_it", forget_it))  # type: ignore[arg-type]
    report = chaos(1, 0.5, 3, tmp_path, image)
    assert "all are members of one epoch" in report.error
    assert "VIOLATION" in (tmp_path / "report.txt").read_text()
    with tarfile.open(report.archive) as archive:
        names = archive.getnames()
    assert sum(name.endswith("/status.json") for name in names) == 2
    assert sum(name.endswith("/not-collected.txt") for name in names) == 1
    assert sum(name.startswith("traces/") and name.endswith(".trace") for name in names) == 3


def test_the_time_line_shows_pauses_and_faults(tmp_path: Path) -> None:
    def got(time_ns: int, count: int) -> Got:
        return Got(time_ns, "red", 1, 1, 1, 1, 1, 1, 1, 1, tuple(range(count)))

    second = 10**9
    for node, times in ((1, (10, 11, 14)), (2, (10.4, 10.8, 13))):
        with Writer(tmp_path / str(node)) as writer:
            writer.write(Began(0, {}))
            for time_s in times:
                writer.write(got(round(time_s * second), 3))
    done = [Done("kill", 2, 1, 11 * second, 1.5, 0.5, (1, 3))]
    timeline = Timeline.read({node: tmp_path / str(node) for node in (1, 2)}, done)
    assert timeline.seconds == 4.0
    assert timeline.pauses == [(1.0, 3.0), (3.0, 4.0)]
    assert longest_pause(timeline) == 2.0
    assert timeline.faults == [("kill 2", 1.0, 2.5, 3.0)]
    assert timeline.deliveries == {1: {0: 3, 2: 3, 8: 3}, 2: {0: 3, 1: 3, 6: 3}}
    picture = ET.fromstring(draw(timeline, "a <title>"))
    texts = ["".join(text.itertext()) for text in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert "a <title>" in texts
    assert "kill 2" in texts
