"""Exit codes and the one line for an error."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from ocfcluster import errors
from ocfcluster.cli import main
from ocfcluster.cli.exits import Exit, exit_code, explain


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigurationError("x"), 2),
        (errors.SetupError("x"), 3),
        (errors.StateDirectoryError("x"), 3),
        (errors.AgentUnreachable("x"), 4),
        (errors.NotConnected("x"), 4),
        (errors.UnknownTopic("x"), 5),
        (errors.NotPermitted("x"), 5),
        (errors.TooLarge("x"), 5),
        (errors.TopicExists("x"), 5),
        (errors.LimitReached("x"), 5),
        (errors.WouldBlock("x"), 1),
        (errors.OutcomeUnknown("x"), 1),
        (errors.MalformedFrame("x"), 1),
        (FileNotFoundError(2, "No such file", "there"), 2),
        (RuntimeError("x"), 1),
    ],
)
def test_exit_code(error: Exception, code: int) -> None:
    assert exit_code(error) == code


def test_every_class_of_the_tree_has_a_code_on_purpose() -> None:
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.ClientError):
            assert exit_code(kind("x")) in {Exit.FAILED, Exit.NO_AGENT, Exit.REFUSED}


def test_explanation_is_one_line_that_says_what_to_do() -> None:
    text = explain(errors.AgentUnreachable("no agent at\n/run/x.sock; start one with `ocfcluster agent`"))
    assert text.startswith("no agent at /run/x.sock; start one with ")
    assert text.endswith("or name its socket with --socket")
    assert "\n" not in text


def test_file_errors_name_the_file() -> None:
    assert explain(FileNotFoundError(2, "No such file or directory", "/x")) == "/x: No such file or directory"


def test_a_bug_is_a_line_and_not_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("ocfcluster.cli.options.connect", broken)
    with pytest.raises(SystemExit) as ended:
        main(["status"])
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("ocfcluster: internal error: ZeroDivisionError: oops")


def test_a_bug_shows_its_traceback_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("ocfcluster.cli.options.connect", broken)
    monkeypatch.setenv("OCFCLUSTER_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        main(["status"])


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (errors.UnknownTopic("there is no topic 'news'"), "topic create"),
        (errors.UnknownTopic("topic 'news' has no event 999 yet: the next one is 6"), ""),
        (errors.TopicExists("topic 'news' exists with scope local"), "tells its scope"),
        (
            errors.TopicExists("topic 'news' exists with other settings; alter it to change them"),
            "topic alter",
        ),
    ],
)
def test_a_hint_is_about_what_went_wrong(error: errors.ClientError, hint: str) -> None:
    text = explain(error)
    assert text.startswith(str(error.strerror))
    assert hint in text
    assert hint or text == error.strerror


def test_an_agent_does_not_pass_over_a_socket_that_is_for_other_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ocfcluster.agent.main.run_agent", lambda *_, **__: 0)
    with pytest.raises(SystemExit) as ended:
        main(["--socket", "/x", "agent"])
    assert ended.value.code == 2
    assert "node.socket" in capsys.readouterr().err


def test_an_empty_filter_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["subscribe", "t", "--filter", "", "--socket", "/nowhere"])
    assert ended.value.code == 2
    assert "--filter" in capsys.readouterr().err


INTERRUPTED = """
import contextlib, os, time
from ocfcluster.cli import main, options
from ocfcluster.conformance import registry, runner

def hangs(context):
    print(os.getpid(), flush=True)
    time.sleep(60)

options.connect = lambda *_, **__: contextlib.nullcontext()
runner.checks = lambda: [registry.Check("A1", "hangs", hangs, 60.0)]
main(["conformance", "A1", "--socket", "/nowhere"])
"""


def test_a_check_that_hangs_ends_with_the_command_that_is_told_to_end() -> None:
    with subprocess.Popen([sys.executable, "-c", INTERRUPTED], stdout=subprocess.PIPE, text=True) as command:
        assert command.stdout is not None
        child = int(command.stdout.readline())
        command.send_signal(signal.SIGTERM)
        command.wait(30)
        try:
            os.kill(child, signal.SIGKILL)
        except ProcessLookupError:
            return
    pytest.fail("the check's process has outlived the command")


def test_a_reader_of_help_that_went_away_is_no_failure() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "ocfcluster", "--help"], stdout=closed, stderr=subprocess.PIPE
        )
    assert (done.returncode, done.stderr) == (0, b"")


def test_output_that_is_full_is_named_and_is_no_mistake_of_usage() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "ocfcluster", "limits"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert done.stderr == "ocfcluster: standard output: No space left on device\n"
