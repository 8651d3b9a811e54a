"""``ocfcluster node``, ``shutdown``, ``bootstrap``, ``recover``, ``rejoin``: what they ask, and what they say."""

from __future__ import annotations

import json
from typing import Any, Self

import pytest

from ocfcluster import errors
from ocfcluster.cli import main
from ocfcluster.client.admin import Admin
from ocfcluster.wire.frames import Administer, Administration, Request


class Recorder:
    """A client whose agent does all that it is asked, or refuses it with ``error``."""

    error: errors.ClientError | None = None

    def __init__(self) -> None:
        self.asked: list[Administer] = []
        self.orders: list[bool] = []
        self.admin = Admin(self)  # type: ignore[arg-type]

    def status(self) -> dict[str, Any]:
        return {"table": {1: 1, 2: 1, 3: 1}}

    def connection(self) -> Self:
        return self

    def call(self, kind: Request, body: Administer, timeout: float | None) -> None:
        assert kind is Request.ADMINISTER
        self.asked.append(body)
        if self.error is not None:
            raise self.error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder()

    def connect(*_: object, orders: bool, **__: object) -> Recorder:
        made.orders.append(orders)
        return made

    monkeypatch.setattr("ocfcluster.cli.options.connect", connect)
    return made


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert isinstance(ended.value.code, int)
    return ended.value.code


COMMANDS: list[tuple[list[str], Administer, bool, dict[str, Any]]] = [
    (
        ["node", "add", "4"], Administer(Administration.NODE_ADD, 4, 1), True,
        {"command": "node add", "node_id": 4, "votes": 1},
    ),
    (
        ["node", "add", "4", "--votes", "3"], Administer(Administration.NODE_ADD, 4, 3), True,
        {"command": "node add", "node_id": 4, "votes": 3},
    ),
    (
        ["node", "remove", "2"], Administer(Administration.NODE_REMOVE, 2), True,
        {"command": "node remove", "node_id": 2},
    ),
    (
        ["node", "votes", "2", "0"], Administer(Administration.NODE_VOTES, 2, 0), True,
        {"command": "node votes", "node_id": 2, "votes": 0},
    ),
    (
        ["node", "sequence", "3"], Administer(Administration.SEQUENCE, 3), True,
        {"command": "node sequence", "node_id": 3},
    ),
    (["shutdown"], Administer(Administration.SHUTDOWN), True, {"command": "shutdown"}),
    (
        ["bootstrap", "--without", "2", "3"], Administer(Administration.BOOTSTRAP_WITHOUT, nodes=[2, 3]), False,
        {"command": "bootstrap", "without": [2, 3]},
    ),
    (
        ["recover", "--new-history"], Administer(Administration.NEW_HISTORY), False,
        {"command": "recover", "new_history": True},
    ),
    (["rejoin"], Administer(Administration.REJOIN), False, {"command": "rejoin"}),
]  # fmt: skip
each_command = pytest.mark.parametrize(
    ("arguments", "asked", "ordered", "document"), COMMANDS, ids=[" ".join(one[0]) for one in COMMANDS]
)


@each_command
def test_it_asks_once_and_says_so(
    client: Recorder, capsys: pytest.CaptureFixture[str],
    arguments: list[str], asked: Administer, ordered: bool, document: dict[str, Any],
) -> None:  # fmt: skip
    assert run(*arguments) == 0
    assert (client.asked, client.orders) == ([asked], [ordered])
    told = capsys.readouterr()
    assert len(told.out.splitlines()) == 1
    assert not told.err
    assert run(*arguments, "--json") == 0
    assert json.loads(capsys.readouterr().out) == document


def test_a_node_that_is_in_the_table_is_not_said_to_be_added(
    client: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("node", "add", "2") == 0
    assert capsys.readouterr().out == "node 2 is in the node table already, with 1 vote\n"


@each_command
def test_help_has_an_example_that_is_this_command(
    capsys: pytest.CaptureFixture[str], arguments: list[str], asked: Administer, ordered: bool, document: Any
) -> None:
    words = [word for word in arguments[:2] if word.isalpha()]
    assert run(*words, "--help") == 0
    told = capsys.readouterr().out
    assert f"Example: ocfcluster {' '.join(words)}" in told


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.Refused("no majority"), 5),
        (errors.NotPermitted("root alone"), 5),
        (errors.NotConnected("gone"), 4),
    ],
)
def test_what_is_refused_is_said(
    client: Recorder, capsys: pytest.CaptureFixture[str], error: errors.ClientError, code: int
) -> None:
    client.error = error
    assert run("node", "remove", "2") == code
    told = capsys.readouterr()
    assert told.err == f"ocfcluster: {error.strerror}\n"
    assert not told.out


@pytest.mark.parametrize(
    "arguments",
    [
        ["node", "add", "0"], ["node", "add", "4294967296"], ["node", "add", "x"], ["node", "votes", "2"],
        ["node", "votes", "2", "256"], ["node", "remove"], ["bootstrap", "2"], ["bootstrap", "--without"],
        ["bootstrap", "--without", "0"], ["recover"], ["shutdown", "now"],
    ],
)  # fmt: skip
def test_usage(client: Recorder, arguments: list[str]) -> None:
    assert run(*arguments) == 2
    assert not client.asked
