"""What an installation consists of besides this project: pinned by hash, installed as pinned, under licences that we
have looked at, listed in a bill of materials, and asked about at the vulnerability service."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, Final

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from release.artifacts import PACKAGE, ROOT, ReleaseError, run

PINS: Final = ROOT / "requirements"
RUNTIME: Final = PINS / "runtime.txt"
INSTALL_S: Final = 600.0
TOOL_S: Final = 300.0
HASH: Final = re.compile(r"--hash=(\S+)")
SHA256: Final = re.compile(r"sha256:[0-9a-f]{64}")
# What may be used and passed on beside Apache-2.0 without asking anybody; another one is for a person to judge.
LICENCES: Final = frozenset(
    {"Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT", "MIT-0", "PSF-2.0"}
)  # fmt: skip


class Unreachable(ReleaseError):
    """The vulnerability service has not answered: nothing is known."""


# --- pins -------------------------------------------------------------------------------------------------------------


def read_pins(path: Path) -> dict[str, tuple[Requirement, list[str]]]:
    """By name, each requirement of a file with its hashes. ReleaseError where one is not of the form
    ``name==version [; markers] --hash=sha256:…``, with at least one hash, or where anything else stands there."""
    pins: dict[str, tuple[Requirement, list[str]]] = {}
    for line in path.read_text("utf-8").replace("\\\n", " ").splitlines():
        text = line.partition(" #")[0].strip()
        if not text or text.startswith("#"):
            continue
        hashes = HASH.findall(text)
        try:
            requirement = Requirement(HASH.sub("", text).strip())
        except InvalidRequirement as error:
            raise ReleaseError(f"{path.name}: {text[:100]!r} is no requirement") from error
        operators = [one.operator for one in requirement.specifier]
        if operators != ["=="] or "*" in str(requirement.specifier) or requirement.url is not None:
            raise ReleaseError(f"{path.name}: {requirement} is not pinned to one version")
        if not hashes or not all(SHA256.fullmatch(one) for one in hashes):
            raise ReleaseError(f"{path.name}: {requirement} is not pinned by sha256")
        pins[canonicalize_name(requirement.name)] = (requirement, hashes)
    if not pins:
        raise ReleaseError(f"{path.name} pins nothing")
    return pins


def check_pins(directory: Path = PINS) -> dict[str, int]:
    """How many packages each requirements file pins; ReleaseError where one is not pinned. What several files name
    has the same version in each."""
    versions: dict[tuple[str, str], dict[str, list[str]]] = {}
    counts = {}
    for path in sorted(directory.glob("*.txt")):
        pins = read_pins(path)
        counts[path.name] = len(pins)
        for name, (requirement, _) in pins.items():
            of_name = versions.setdefault((name, str(requirement.marker or "")), {})
            of_name.setdefault(str(requirement.specifier), []).append(path.name)
    for (name, _), of_name in versions.items():
        if len(of_name) > 1:
            raise ReleaseError(f"{name} is pinned to several versions: {of_name}")
    return counts


# --- what is installed ------------------------------------------------------------------------------------------------


def make_environment(directory: Path, pins: Path, wheel: Path | None = None) -> Path:
    """A new virtual environment of ``pins`` alone, by hash, and of ``wheel``; its Python."""
    run([sys.executable, "-m", "venv", "--without-pip", directory], INSTALL_S)
    python = directory / "bin" / "python"
    install(python, "--require-hashes", "-r", pins)
    if wheel is not None:
        install(python, "--no-deps", "--no-index", wheel)
    return python


def install(python: Path, *what: str | Path) -> None:
    """Install into the environment of ``python``, which has no pip of its own."""
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "-q",
        "--no-input",
    ]
    run([*command, "--disable-pip-version-check", "--only-binary", ":all:", *what], INSTALL_S)


def installed(python: Path) -> dict[str, str]:
    """Versions by name."""
    libraries = python.parent.parent / "lib"
    paths = [str(path) for path in libraries.glob("python*/site-packages")]
    return {canonicalize_name(one.name): one.version for one in distributions(path=paths)}


def check_installed(python: Path, pins: Path = RUNTIME) -> dict[str, str]:
    """What is installed; ReleaseError unless it is what is pinned for this machine and Python, and nothing else."""
    wanted = {
        name: next(iter(requirement.specifier)).version
        for name, (requirement, _) in read_pins(pins).items()
        if requirement.marker is None or requirement.marker.evaluate()
    }
    there = installed(python)
    there.pop(PACKAGE, None)
    if there != wanted:
        differs = sorted(set(there.items()) ^ set(wanted.items()))
        raise ReleaseError(f"what is installed is not what {pins.name} pins: {differs}")
    return there


# --- the bill of materials --------------------------------------------------------------------------------------------


def bill_of_materials(python: Path, pins: Path, version: str, epoch: int) -> dict[str, Any]:
    """CycloneDX: what is installed, with versions, licences, who needs whom, and the hashes of the files that are
    pinned. The same for the same commit, Python and tools: no serial number, and the commit's time."""
    tool = Path(sys.executable).parent / "cyclonedx-py"
    environment = {"PATH": "/usr/bin:/bin", "SOURCE_DATE_EPOCH": str(epoch)}
    words: list[str | Path] = ["--output-reproducible", "--spec-version", "1.6"]
    project: list[str | Path] = ["--pyproject", ROOT / "pyproject.toml"]
    bom: dict[str, Any] = json.loads(
        run([tool, "environment", *words, *project, python], TOOL_S, env=environment)
    )
    hashed = json.loads(run([tool, "requirements", *words, pins], TOOL_S, env=environment))
    references = {one["purl"]: one["externalReferences"] for one in hashed["components"]}
    for one in bom["components"]:
        one["externalReferences"] = [*one.get("externalReferences", []), *references.get(one["purl"], [])]
    itself = bom["metadata"]["component"]
    itself["version"], itself["purl"] = version, f"pkg:pypi/{PACKAGE}@{version}"
    check_bill(bom, installed(python))
    return bom


def check_bill(bom: Mapping[str, Any], there: Mapping[str, str]) -> None:
    """ReleaseError where a package is missing, or one has no hash or no licence."""
    listed = {canonicalize_name(one["name"]): one for one in bom["components"]}
    if {name: one["version"] for name, one in listed.items()} != {
        name: version for name, version in there.items() if name != PACKAGE
    }:
        raise ReleaseError(f"the bill of materials lists {sorted(listed)}, and installed is {sorted(there)}")
    for name, one in listed.items():
        if not any(reference.get("hashes") for reference in one["externalReferences"]):
            raise ReleaseError(f"the bill of materials has no hash of {name}")
        if not licences(one):
            raise ReleaseError(f"{name} does not say under which licence it is")


def licences(component: Mapping[str, Any]) -> list[str]:
    """What a component of a bill of materials says of its licence: SPDX ids and expressions, or names where it has
    none."""
    return [
        str(one.get("expression") or one["license"].get("id") or one["license"]["name"])
        for one in component.get("licenses", [])
    ]


def accepted(licence: str) -> bool:
    """Whether an SPDX expression leaves a choice of LICENCES alone. One with brackets is for a person to judge."""
    return any(
        all(word.strip() in LICENCES for word in choice.split(" AND ")) for choice in licence.split(" OR ")
    )


def check_licences(components: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The packages under each licence; ReleaseError where one is not among LICENCES."""
    found: dict[str, list[str]] = {}
    for component in components:
        for licence in licences(component):
            if not accepted(licence):
                raise ReleaseError(
                    f"{component['name']} is under {licence!r}, which nobody has looked at: see LICENCES in {__name__}"
                )
            found.setdefault(licence, []).append(str(component["name"]))
    return found


# --- known vulnerabilities --------------------------------------------------------------------------------------------


def look_up(pins: Sequence[Path], service_url: str | None = None) -> list[str]:
    """Known vulnerabilities of all that is pinned, each in a line; Unreachable where the service does not answer."""
    tool = Path(sys.executable).parent / "pip-audit"
    if not tool.exists() and (tool := Path(shutil.which("pip-audit") or "")) == Path():
        raise ReleaseError("pip-audit is not installed")
    command = [
        str(tool),
        "--disable-pip",
        "--require-hashes",
        "--progress-spinner",
        "off",
        "--format",
        "json",
    ]
    command += ["--vulnerability-service", "osv", *(["--osv-url", service_url] if service_url else [])]
    command += [word for path in pins for word in ("--requirement", str(path))]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=TOOL_S)
    except subprocess.TimeoutExpired as error:
        raise Unreachable(f"no answer within {TOOL_S:.0f} s") from error
    return judge(done.returncode, done.stdout, done.stderr)


def judge(code: int, output: str, errors: str) -> list[str]:
    """What pip-audit has found: it ends with 1 where something is vulnerable, and also where it could not ask; only
    in the first case, and in the case of 0, is there an answer for each package."""
    try:
        packages = json.loads(output)["dependencies"] if code in {0, 1} else None
    except (ValueError, KeyError, TypeError):
        packages = None
    if not packages:
        raise Unreachable((errors.strip().splitlines() or ["it says nothing"])[-1][:500])
    lines = [
        f"{one['name']} {one['version']}: {known['id']}, mended in {', '.join(known['fix_versions']) or 'no version'}"
        for one in packages
        for known in one.get("vulns", [])
    ]
    skipped = [
        f"{one['name']}: not looked up, {one['skip_reason']}" for one in packages if "skip_reason" in one
    ]
    return lines + skipped
