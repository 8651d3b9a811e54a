"""How cost grows: with nodes, subscribers, publishers, topics, the size of events and loss.

    python -m bench.growth --quick                                       # a few points of each axis, about a minute
    python -m bench.growth --json growth.json --picture docs/growth.svg  # all
    python -m bench.growth --only nodes,simulated --rounds 5
    python -m bench.growth --from growth.json                            # the tables of an earlier run

Each axis is a table of points of which one thing grows (bench/growth/axes.py). Agents run in network namespaces, which
needs root; the ``simulated`` ones do not, they are the protocol in virtual time. docs/performance.md says what the
figures mean and what they were.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from bench.compare.peers.peer import PeerError
from bench.growth import agents, simulated
from bench.growth.axes import AXES, Axis, Point, Simulated, chosen
from bench.growth.picture import draw
from bench.growth.report import show
from bench.run import environment
from ocfcluster.errors import ClientError
from tests.cluster import ClusterError

ROUNDS: Final = 3
SECONDS: Final = 1.5
SAMPLES: Final = 1000
QUICK: Final = {"rounds": 1, "seconds": 0.5, "samples": 200}
FAILURES: Final = (PeerError, ClusterError, ClientError, RuntimeError, OSError, TimeoutError)


def main() -> int:
    arguments = _parse()
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        if arguments.source:
            return _hand_over(earlier(arguments.source), arguments)
        axes = chosen(arguments.only)
        if arguments.rounds < 0 or arguments.seconds < 0:
            raise ValueError("--rounds and --seconds are more than nothing")
    except (ValueError, OSError) as error:
        console.print(f"bench.growth: {error}", markup=False)
        return 2
    if not all(axis.simulated for axis in axes):
        if os.geteuid() != 0:
            console.print(
                "bench.growth: network namespaces need root: run this with sudo, or with --only simulated"
            )
            return 3
        if missing := [tool for tool in ("ip", "nft") if shutil.which(tool) is None]:
            console.print(
                f"bench.growth: there is no {', '.join(missing)} (apt-get install iproute2 nftables)"
            )
            return 3
    try:
        document = Growing(axes, arguments, console).run()
    except KeyboardInterrupt:
        kept = f"; {arguments.json} has what was measured" if arguments.json else ""
        console.print(f"bench.growth: interrupted{kept}", markup=False)
        return 130
    return _hand_over(document, arguments)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench.growth", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ", ".join(axis.name for axis in AXES)
    parser.add_argument("--only", default="all", metavar="AXIS,...", help=f"of {names} (default: all)")
    parser.add_argument("--quick", action="store_true", help="few points, one short round of each")
    parser.add_argument("--rounds", type=int, default=0, help=f"of each point (default {ROUNDS})")
    parser.add_argument(
        "--seconds", type=float, default=0, help=f"that a round publishes (default {SECONDS:g})"
    )
    parser.add_argument(
        "--json", metavar="FILE", help="write all measurements and the environment there, point by point"
    )
    parser.add_argument("--picture", metavar="FILE", help="draw the figures there (SVG)")
    parser.add_argument(
        "--from", dest="source", metavar="FILE", help="show the JSON of an earlier run, measure nothing"
    )
    return parser.parse_args()


def earlier(path: str) -> dict[str, Any]:
    """The document of an earlier run. Raises ValueError where the file is something else, OSError."""
    try:
        document: dict[str, Any] = json.loads(Path(path).read_text("utf-8"))
        if not isinstance(document["axes"], dict) or not isinstance(document["environment"], dict):
            raise TypeError
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is not what --json has written") from None
    return document


def _hand_over(document: dict[str, Any], arguments: argparse.Namespace) -> int:
    show(document)
    if arguments.json:
        _write(document, arguments.json)
    if arguments.picture:
        Path(arguments.picture).write_text(draw(document), "utf-8")
    points = [point for axis in document["axes"].values() for point in axis["points"]]
    return 1 if any("error" in result for point in points for result in point["rounds"]) else 0


def _write(document: dict[str, Any], path: str) -> None:
    Path(path).write_text(json.dumps(document, indent=1) + "\n", "utf-8")


class Growing:
    """One run: axis by axis, point by point, each with a cluster of its own."""

    def __init__(self, axes: list[Axis], arguments: argparse.Namespace, console: Console) -> None:
        self._axes = axes
        self._arguments = arguments
        self._console = console
        wanted = QUICK if arguments.quick else {"rounds": ROUNDS, "seconds": SECONDS, "samples": SAMPLES}
        self._rounds = int(arguments.rounds or wanted["rounds"])
        self._seconds = float(arguments.seconds or wanted["seconds"])
        self._samples = int(wanted["samples"])

    def run(self) -> dict[str, Any]:
        """All of it; the document that is written as JSON. A point that fails has its error, and the next follows."""
        settings = argparse.Namespace(event_loop="asyncio", delivery="safe", mtu=1500)
        about = environment(settings)
        del about["hosts"]  # each point says how many
        about["command"] = shlex.join(["python", "-m", "bench.growth", *sys.argv[1:]])
        document: dict[str, Any] = {
            "environment": about,
            "rounds": self._rounds,
            "seconds": self._seconds,
            "axes": {},
        }
        for axis in self._axes:
            chosen_points = axis.chosen(self._arguments.quick)
            points: list[dict[str, Any]] = [
                {"label": axis.label(point), "point": asdict(point), "rounds": []} for point in chosen_points
            ]
            document["axes"][axis.name] = {"what": axis.what, "points": points}
            rounds = 1 if axis.simulated else self._rounds  # the simulator gives the same each time
            for number in range(1, rounds + 1):
                # Round by round, to and fro: a noisy minute touches all points, and not all rounds of one.
                for place in range(len(points))[:: 1 if number % 2 else -1]:
                    progress = f"{number}/{rounds} {axis.name:14} {points[place]['label']:>7}"
                    result = self._measure(axis, chosen_points[place], progress)
                    points[place]["rounds"].append({"load_average": os.getloadavg()[0], **result})
                    about["load_average_after"] = os.getloadavg()
                    if self._arguments.json:  # so that a run that is ended leaves what it has measured
                        _write(document, self._arguments.json)
        return document

    def _measure(self, axis: Axis, point: Point | Simulated, progress: str) -> dict[str, Any]:
        def say(text: str) -> None:
            self._console.print(f"{progress}  {text}", markup=False)

        try:
            if isinstance(point, Simulated):
                return simulated.measure(point, say)
            samples = self._samples if axis.latency else 0
            result = agents.measure(point, seconds=self._seconds, samples=samples)
        except FAILURES as error:
            say(f"failed: {error}")
            return {"error": str(error).partition("\n")[0]}
        say(agents.line(result))
        return result


if __name__ == "__main__":
    sys.exit(main())
