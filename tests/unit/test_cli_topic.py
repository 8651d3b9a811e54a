"""``ocfcluster topic``: what its options about access ask for, and how the answer reads."""

from __future__ import annotations

import json
from typing import Any, Self

import pytest

from ocfcluster.cli import main
from ocfcluster.client.events import TopicInfo
from ocfcluster.errors import UnknownTopic
from ocfcluster.wire.frames import Grant, TopicAccess
from ocfcluster.wire.topics import Access, Retention, TopicSettings


class Agent:
    """In the place of a client: has one topic and one rule, and keeps what was asked."""

    def __init__(self) -> None:
        self.settings = TopicSettings(Retention(events=5), Access(("user:a",), ("*",), ("gid:7",)))
        self.rule = Access(("uid:1",))
        self.asked: list[tuple[Any, ...]] = []

    def create_topic(self, name: str, scope: str, settings: TopicSettings) -> TopicInfo:
        self.asked.append(("create", name, scope, settings.access))
        return TopicInfo(name, 16, scope, 0, settings=settings)

    def alter_topic(self, name: str, settings: TopicSettings) -> None:
        self.asked.append(("alter", name, settings))

    def topic(self, name: str) -> TopicInfo:
        return TopicInfo(name, 16, "global", 3, settings=self.settings)

    def topics(self) -> list[TopicInfo]:
        return [TopicInfo("group:a*", 17, "local", 0), self.topic("orders")]

    def access(self, name: str) -> TopicAccess:
        if name == "no":
            raise UnknownTopic("there is no topic 'no'")
        lists, rule = (self.rule, "group:a*") if name.startswith("group:") else (self.settings.access, "")
        grants = [
            Grant(right, list(getattr(lists, right)), right == "subscribe", f"because of {right}")
            for right in ("publish", "subscribe", "administer")
        ]
        return TopicAccess(name, grants, 1001, ["user:a"], rule)

    agent = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Agent:
    made = Agent()
    monkeypatch.setattr("ocfcluster.cli.options.connect", lambda *_, **__: made)
    monkeypatch.setattr("ocfcluster.cli.options.waiting_for", lambda _: "")
    return made


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["topic", *arguments])
    return int(ended.value.code or 0)


def test_lists_of_a_new_topic(agent: Agent) -> None:
    assert run("create", "plain") == 0
    assert (
        run(
            "create",
            "t",
            "--publish",
            "user:a",
            "--publish",
            "gid:7",
            "--subscribe",
            "none",
            "--administer",
            "*",
        )
        == 0
    )
    assert agent.asked == [
        ("create", "plain", "global", Access()),
        ("create", "t", "global", Access(("user:a", "gid:7"), (), ("*",))),
    ]


def test_what_is_not_named_stays(agent: Agent) -> None:
    assert run("alter", "orders", "--subscribe", "uid:5") == 0
    changed = TopicSettings(Retention(events=5), Access(("user:a",), ("uid:5",), ("gid:7",)))
    assert agent.asked == [("alter", "orders", changed)]
    agent.asked.clear()
    assert run("alter", "orders", "--publish", "none", "--administer", "none") == 0
    assert agent.asked[0][2].access == Access((), ("*",), ())


def test_a_rule_is_altered_where_there_is_one_of_this_name(
    agent: Agent, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("alter", "group:a*", "--subscribe", "none") == 0
    assert agent.asked == [("alter", "group:a*", TopicSettings(access=Access(("uid:1",), ())))]
    assert run("alter", "group:abc", "--subscribe", "none") == 5
    assert "no rule" in capsys.readouterr().err
    assert run("create", "group:*", "--publish", "none") == 0
    assert "who may use these groups" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ("alter", "orders"), ("create", "t", "--publish", "bob"), ("alter", "t", "--subscribe", "uid:x"),
        ("create", "t", "--administer", ""),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_usage(agent: Agent, arguments: tuple[str, ...]) -> None:
    assert run(*arguments) == 2
    assert agent.asked == []


def test_rights_are_shown(agent: Agent, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", "orders") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-8:] == [
        "publish:          user:a",
        "subscribe:        anybody",
        "administer:       gid:7",
        "you are:          uid 1001",
        "you publish:      no: because of publish",
        "you subscribe:    yes: because of subscribe",
        "you administer:   no: because of administer",
        "not on this node: user:a",
    ]
    assert run("show", "group:abc") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "rule:             group:a*"
    assert lines[3] == "administer:       administrators alone"
    assert run("show", "no") == 5


def test_nobody_but_the_cluster_publishes_on_its_own_topics(
    agent: Agent, capsys: pytest.CaptureFixture[str]
) -> None:
    agent.settings = TopicSettings(access=Access((), ("*",), ()))
    assert run("show", "oc.membership") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "publish:          the cluster itself" in lines
    assert "subscribe:        anybody" in lines
    assert "administer:       the cluster itself" in lines


def test_rights_are_shown_to_programs(agent: Agent, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", "orders", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["access"] == {"publish": ["user:a"], "subscribe": ["*"], "administer": ["gid:7"]}
    assert shown["you"]["uid"] == 1001
    assert shown["you"]["subscribe"] == {"allowed": True, "why": "because of subscribe"}
    assert (shown["topic_id"], shown["unknown"], shown["rule"]) == (16, ["user:a"], "")
    assert run("list", "--json") == 0
    rule, topic = json.loads(capsys.readouterr().out)
    assert (rule["scope"], topic["scope"], topic["access"]["administer"]) == ("rule", "global", ["gid:7"])
