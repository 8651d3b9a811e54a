"""Exit codes and the one line for an error."""

from __future__ import annotations

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
