"""Audits what an installation is made of.

    python -m release.audit                # `make audit`
    python -m release.audit --offline      # without asking the vulnerability service

First what can be seen from here: every package of requirements/*.txt is pinned to one version and by hash, an
environment made of requirements/runtime.txt holds these packages and no others, and each is under a licence that is
known to be good. Then the vulnerability service is asked about all that is pinned.

Exit codes: 0: all is well. 1: something is not, or is known to be vulnerable. 2: wrong arguments. 3: what can be seen
from here is well, but the service could not be reached, so nothing is known of vulnerabilities.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from release import supply
from release.artifacts import ReleaseError, commit_time

VULNERABLE: Final = 1
WRONG: Final = 1
NOT_ASKED: Final = 3


def look_from_here(python: Path, bom: dict[str, Any]) -> None:
    """The checks that need no network; says what it has seen. ReleaseError where something is wrong."""
    counts = supply.check_pins()
    print(f"pinned by hash: {', '.join(f'{count} in {name}' for name, count in counts.items())}")
    print(f"installed as pinned: {len(supply.check_installed(python))} packages")
    for licence, names in sorted(supply.check_licences(bom["components"]).items()):
        print(f"  {licence}: {', '.join(names)}")


def ask(service_url: str | None) -> int:
    """Ask the vulnerability service; the exit code."""
    pins = sorted(supply.PINS.glob("*.txt"))
    try:
        known = supply.look_up(pins, service_url)
    except supply.Unreachable as error:
        print(
            f"audit: the vulnerability service could not be asked, so nothing is known of vulnerabilities: {error}\n"
            "audit: run it again where the service can be reached; all else is well",
            file=sys.stderr,
        )
        return NOT_ASKED
    for line in known:
        print(f"audit: {line}", file=sys.stderr)
    print(f"known vulnerabilities: {len(known) or 'none'}")
    return VULNERABLE if known else 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m release.audit", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--offline", action="store_true", help="do not ask the vulnerability service")
    parser.add_argument("--service-url", help="of a service like OSV's, in the place of the public one")
    options = parser.parse_args(argv)
    try:
        with tempfile.TemporaryDirectory(prefix="ocfcluster-audit-") as scratch:
            python = supply.make_environment(Path(scratch) / "venv", supply.RUNTIME)
            look_from_here(python, supply.bill_of_materials(python, supply.RUNTIME, "0", commit_time()))
        return 0 if options.offline else ask(options.service_url)
    except ReleaseError as error:
        print(f"audit: {error}", file=sys.stderr)
        return WRONG


if __name__ == "__main__":
    sys.exit(main())
