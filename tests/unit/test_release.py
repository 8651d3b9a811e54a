"""A release: the same bytes from wherever it is built, with all that belongs to it; and what an audit says."""

from __future__ import annotations

import http.server
import json
import re
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from release import artifacts, audit, make, supply
from release.artifacts import ODD, PLAIN, ROOT, Artifacts, ReleaseError

HASH = f"--hash=sha256:{'0' * 64}"
TOOLS = ROOT / "build" / "release-venv" / "bin"
in_git = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is no git checkout")

# --- what is built ----------------------------------------------------------------------------------------------------


@in_git
def test_two_builds_are_the_same_and_hold_what_they_should(tmp_path: Path) -> None:
    files, epoch = artifacts.project_files(), artifacts.commit_time()
    made = artifacts.build_twice(files, tmp_path, epoch)
    artifacts.check_wheel(made.wheel, files)
    artifacts.check_sdist(made.sdist, files)
    assert artifacts.digest(artifacts.wheel_again(made.sdist, tmp_path, epoch)) == artifacts.digest(
        made.wheel
    )
    unpacked = {
        path.relative_to(tmp_path / "unpacked").parts[1] for path in (tmp_path / "unpacked").glob("*/*")
    }
    assert unpacked >= {
        "Makefile",
        "bench",
        "deploy",
        "docs",
        "integration",
        "ocfcluster",
        "release",
        "requirements",
    }
    assert not any(name.startswith("tests/") for name in zipfile.ZipFile(made.wheel).namelist())


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A small project, whose build backend may be told to take the files' times into its archives."""
    tree = tmp_path / "project"
    (tree / "ocfcluster").mkdir(parents=True)
    (tree / "ocfcluster" / "__init__.py").write_text('__version__ = "1"\n')
    (tree / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        '[project]\nname = "ocfcluster"\nversion = "1"\n'
    )
    return tree


FILES = ["ocfcluster/__init__.py", "pyproject.toml"]


def test_builds_that_depend_on_their_surroundings_are_refused(project: Path, tmp_path: Path) -> None:
    artifacts.build_twice(FILES, tmp_path / "good", 10**9, project)
    with (project / "pyproject.toml").open("a") as file:
        file.write("[tool.hatch.build]\nreproducible = false\n")
    with pytest.raises(ReleaseError, match=r"two builds of .* are not the same:\n  ocfcluster"):
        artifacts.build_twice(FILES, tmp_path / "bad", 10**9, project)


def test_a_file_too_few_or_too_many_is_refused(project: Path, tmp_path: Path) -> None:
    made = artifacts.build_both(FILES, tmp_path, 10**9, PLAIN, project)
    artifacts.check_wheel(made.wheel, FILES)
    artifacts.check_sdist(made.sdist, FILES)
    for check, path in ((artifacts.check_wheel, made.wheel), (artifacts.check_sdist, made.sdist)):
        with pytest.raises(ReleaseError, match=r"lacks ocfcluster/more\.py"):
            check(path, [*FILES, "ocfcluster/more.py"])
        with pytest.raises(ReleaseError, match=r"holds besides ocfcluster/__init__\.py"):
            check(path, FILES[1:])


def test_a_copy_has_the_modes_and_times_of_its_surroundings(project: Path, tmp_path: Path) -> None:
    (project / "pyproject.toml").chmod(0o755)
    artifacts.copy(FILES, tmp_path / "odd", ODD, project)
    assert (tmp_path / "odd" / FILES[0]).stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "odd" / FILES[1]).stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "odd" / FILES[1]).stat().st_mtime == ODD.file_time


@pytest.fixture
def repository(project: Path) -> Path:
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        who = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
        subprocess.run(["git", "-C", project, *who, *words], check=True)
    return project


def test_what_is_released_is_a_commit_with_its_tag(repository: Path) -> None:
    make.check_tree("1", repository)
    subprocess.run(["git", "-C", repository, "tag", "v1"], check=True)
    make.check_tree("1", repository)
    with pytest.raises(ReleaseError, match="has the tag v1, and this is version 2"):
        make.check_tree("2", repository)
    (repository / "new.txt").touch()
    with pytest.raises(ReleaseError, match=r"differs from HEAD:\n\?\? new\.txt"):
        make.check_tree("1", repository)


def test_what_is_written_has_its_checksums(tmp_path: Path) -> None:
    made = Artifacts(tmp_path / "ocfcluster-1-py3-none-any.whl", tmp_path / "ocfcluster-1.tar.gz")
    for path in (made.wheel, made.sdist):
        path.write_bytes(path.name.encode())
    directory = tmp_path / "dist"
    directory.mkdir()
    (directory / "ocfcluster-0-py3-none-any.whl").touch()  # of the release before
    make.write(made, "{}\n", directory)
    assert sorted(path.name for path in directory.iterdir()) == [
        "SHA256SUMS", "ocfcluster-1-py3-none-any.whl", "ocfcluster-1.cdx.json", "ocfcluster-1.tar.gz",
    ]  # fmt: skip
    done = subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=directory)
    assert done.returncode == 0


def test_what_is_tried_is_what_is_installed(tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    for place, version, problem in (
        (ROOT / "ocfcluster" / "__init__.py", "1", "not the installed wheel is tested"),
        ("/usr/lib/python3/site-packages/ocfcluster/__init__.py", "1", "not the installed wheel is tested"),
        (tmp_path / "lib" / "site-packages" / "ocfcluster" / "__init__.py", "2", "says that it is version 2"),
        (tmp_path / "lib" / "site-packages" / "ocfcluster" / "__init__.py", "1", ""),
    ):
        python.write_text(f"#!/bin/sh\necho {place}\necho {version}\n")
        python.chmod(0o755)
        if problem:
            with pytest.raises(ReleaseError, match=problem):
                make.check_place(python, "1", tmp_path)
        else:
            make.check_place(python, "1", tmp_path)


# --- what it is made of -----------------------------------------------------------------------------------------------


def test_all_that_is_installed_anywhere_is_pinned_by_hash() -> None:
    assert set(supply.check_pins()) >= {"build.txt", "dev.txt", "peers.txt", "release.txt", "runtime.txt"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "pins nothing"),
        ("thing>=1 \\\n    " + HASH, "not pinned to one version"),
        ("thing==1.* " + HASH, "not pinned to one version"),
        ("thing==1,<2 " + HASH, "not pinned to one version"),
        ("thing " + HASH, "not pinned to one version"),
        ("thing==1", "not pinned by sha256"),
        ("thing==1 --hash=md5:00", "not pinned by sha256"),
        (f"thing==1 {HASH} --hash=sha256:00", "not pinned by sha256"),
        ("thing @ file:///tmp/thing.whl " + HASH, "not pinned to one version"),
        ("--find-links=/tmp\nthing==1 " + HASH, "is no requirement"),
        ("-r other.txt", "is no requirement"),
    ],
)
def test_what_is_not_pinned_is_refused(text: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "pins.txt").write_text(f"# a comment\n{text}\n")
    with pytest.raises(ReleaseError, match=problem):
        supply.check_pins(tmp_path)


def test_pins_of_several_files_agree(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text(
        f"Some_Thing==1 ; python_version < '4' \\\n    {HASH} \\\n    {HASH}  # why\n"
    )
    (tmp_path / "other.txt").write_text(f"some-thing==1 ; python_version < '4' {HASH}\n")
    assert supply.check_pins(tmp_path) == {"one.txt": 1, "other.txt": 1}
    (tmp_path / "other.txt").write_text(f"some-thing==2 ; python_version < '4' {HASH}\n")
    with pytest.raises(ReleaseError, match="some-thing is pinned to several versions"):
        supply.check_pins(tmp_path)


def test_what_is_installed_is_what_is_pinned_for_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pins = tmp_path / "pins.txt"
    pins.write_text(f"here==1 {HASH}\nelsewhere==1 ; sys_platform == 'win32' {HASH}\n")
    for there, good in (
        ({"here": "1", "ocfcluster": "7"}, True),
        ({"here": "2"}, False),
        ({}, False),
        ({"here": "1", "elsewhere": "1"}, False),
        ({"here": "1", "more": "1"}, False),
    ):
        monkeypatch.setattr(supply, "installed", lambda python, there=there: dict(there))
        if good:
            assert supply.check_installed(Path("python"), pins) == {"here": "1"}
        else:
            with pytest.raises(ReleaseError, match=r"is not what pins\.txt pins"):
                supply.check_installed(Path("python"), pins)


@pytest.mark.parametrize(
    ("licence", "good"),
    [
        ("MIT", True),
        ("GPL-3.0-only", False),
        ("Apache-2.0 OR GPL-3.0-only", True),
        ("MIT AND GPL-3.0-only", False),
        ("MIT AND BSD-3-Clause", True),
        ("(MIT OR GPL-3.0-only) AND ISC", False),  # brackets are for a person to judge
        ("", False),
        ("Some Licence", False),
    ],
)
def test_licences(licence: str, good: bool) -> None:
    assert supply.accepted(licence) == good
    component = {"name": "thing", "licenses": [{"expression": licence}]}
    if good:
        assert supply.check_licences([component]) == {licence: ["thing"]}
    elif licence:
        with pytest.raises(ReleaseError, match=f"thing is under {re.escape(repr(licence))}"):
            supply.check_licences([component])


def test_a_bill_of_materials_lists_all_with_hash_and_licence() -> None:
    def component(**other: Any) -> dict[str, Any]:
        reference = {"hashes": [{"alg": "SHA-256", "content": "00"}]}
        licence = {"license": {"id": "MIT"}}
        return {
            "name": "A_thing",
            "version": "1",
            "externalReferences": [reference],
            "licenses": [licence],
        } | other

    supply.check_bill({"components": [component()]}, {"a-thing": "1", "ocfcluster": "7"})
    for wrong, problem in (
        ([], "lists"),
        ([component(version="2")], "lists"),
        ([component(), component(name="more")], "lists"),
        ([component(externalReferences=[{}])], "has no hash of a-thing"),
        ([component(licenses=[])], "does not say under which licence"),
    ):
        with pytest.raises(ReleaseError, match=problem):
            supply.check_bill({"components": wrong}, {"a-thing": "1", "ocfcluster": "7"})


# --- what is known of it ----------------------------------------------------------------------------------------------

CLEAN = {"name": "thing", "version": "1", "vulns": []}
BAD = {"name": "thing", "version": "1", "vulns": [{"id": "X-1", "fix_versions": ["2", "3"]}]}


def answer(*packages: dict[str, Any]) -> str:
    return json.dumps({"dependencies": packages, "fixes": []})


def test_what_the_vulnerability_service_says() -> None:
    assert supply.judge(0, answer(CLEAN), "") == []
    assert supply.judge(1, answer(CLEAN, BAD), "") == ["thing 1: X-1, mended in 2, 3"]
    skipped = {"name": "thing", "skip_reason": "not there"}
    assert supply.judge(0, answer(skipped), "") == ["thing: not looked up, not there"]


@pytest.mark.parametrize("output", ["", "no JSON", "[]", "{}", '{"dependencies": []}'])
@pytest.mark.parametrize("code", [0, 1])
def test_no_answer_is_no_good_answer(output: str, code: int) -> None:
    with pytest.raises(supply.Unreachable, match="name or service not known"):
        supply.judge(code, output, "Traceback\nConnectionError: name or service not known\n")


@pytest.mark.parametrize(
    ("told", "code", "words"),
    [
        ([], 0, "known vulnerabilities: none"),
        (["thing 1: X-1"], 1, "audit: thing 1: X-1"),
        (
            supply.Unreachable("refused"),
            3,
            "could not be asked, so nothing is known of vulnerabilities: refused",
        ),
    ],
)
def test_an_audit_tells_what_is_known_from_what_is_not(
    told: Any, code: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def look_up(pins: list[Path], url: str | None) -> list[str]:
        if isinstance(told, Exception):
            raise told
        return list(told)

    monkeypatch.setattr(supply, "look_up", look_up)
    assert audit.ask(None) == code
    assert words in "".join(capsys.readouterr())


@contextmanager
def service(vulnerable: str) -> Iterator[str]:
    """A vulnerability service on loopback, like OSV's, that knows something about one package; its URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            ranges = [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "999"}]}]
            package = {"name": vulnerable, "ecosystem": "PyPI"}
            known = {"id": "X-1", "summary": "bad", "affected": [{"package": package, "ranges": ranges}]}
            said = json.dumps({"vulns": [known]} if asked["package"]["name"] == vulnerable else {}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *words: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.long
@pytest.mark.skipif(
    not (TOOLS / "pip-audit").exists(), reason="needs build/release-venv: make audit makes it"
)
@pytest.mark.parametrize(("vulnerable", "code"), [("nothing", 0), ("msgspec", 1), (None, 3)])
def test_an_audit_as_it_is_run(vulnerable: str | None, code: int) -> None:
    command: list[str | Path] = [TOOLS / "python", "-m", "release.audit"]
    if vulnerable is None:  # nobody listens there
        done = subprocess.run(
            [*command, "--service-url", "http://127.0.0.1:9/"], cwd=ROOT, capture_output=True
        )
    else:
        with service(vulnerable) as url:
            done = subprocess.run([*command, "--service-url", url], cwd=ROOT, capture_output=True)
    assert done.returncode == code, done.stderr
    assert b"installed as pinned" in done.stdout
    assert (b"X-1, mended in 999" in done.stderr) == (code == 1)
    assert (b"could not be asked" in done.stderr) == (code == 3)
