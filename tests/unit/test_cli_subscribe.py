"""``ocfcluster subscribe``: its time limit while the subscription does not stand, and its options."""

from __future__ import annotations

import time
from typing import Any, Self

import pytest

from ocfcluster.cli import main
from ocfcluster.errors import WouldBlock


class Forming:
    """A client that gets no subscription, as while the cluster is forming."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def subscribe(self, _: list[str], *, timeout: float | None = None, **_options: Any) -> Any:
        assert timeout is not None, "it would wait for ever"
        time.sleep(timeout)
        raise WouldBlock("no answer")

    def status(self, *, timeout: float | None = None) -> dict[str, Any]:
        assert timeout is not None
        return {"waiting_for": "nodes 2"}


def test_the_time_limit_holds_while_the_cluster_forms(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ocfcluster.cli.options.connect", lambda *_, **__: Forming())
    with pytest.raises(SystemExit) as ended:
        main(["subscribe", "orders", "--timeout", "0.1"])
    assert ended.value.code == 1
    assert capsys.readouterr().err == "ocfcluster: not subscribed within 0.1 s: waiting for nodes 2\n"


def test_a_count_of_nothing_is_refused() -> None:
    with pytest.raises(SystemExit) as ended:
        main(["subscribe", "orders", "--count", "0", "--socket", "/nowhere"])
    assert ended.value.code == 2


def test_a_filter_that_cannot_be_read_is_pointed_at(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["subscribe", "alarms", "--filter", "severity == high", "--socket", "/nowhere"])
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    at = next(place for place, line in enumerate(lines) if "severity == high" in line)
    assert lines[at + 1].rstrip().endswith("^")
    assert lines[at + 1].index("^") == lines[at].index("high")
    assert any("character 13" in line for line in lines)


def test_a_policy_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["subscribe", "alarms", "--on-slow", "panic", "--socket", "/nowhere"])
    assert ended.value.code == 2
    assert "drop_oldest" in capsys.readouterr().err
