"""What the router hands on of a topic's removal."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from ocfcluster.agent.local import LocalTopics
from ocfcluster.agent.router import Router
from ocfcluster.protocol.effects import Topic, TopicChange


@pytest.mark.parametrize(("is_local", "last_seq"), [(False, 7), (True, 9)])
def test_a_removal_says_how_far_the_topic_had_got(is_local: bool, last_seq: int) -> None:
    """Of a local topic this agent alone knows it, and forgets it behind that."""
    removed: list[tuple[int, int]] = []
    hub = SimpleNamespace(by_topic={}, topic_removed=lambda *of: removed.append(of))
    requests = SimpleNamespace(permissions=SimpleNamespace(topic_changed=lambda change: None))
    local, nothing = LocalTopics(), cast("Any", None)
    if is_local:
        local.last_seq[20] = 9
    router = Router(cast("Any", hub), {}, cast("Any", requests), local, nothing, nothing, nothing, nothing)
    change = TopicChange(Topic(20, "t", is_local), removed=True, last_seq=0 if is_local else 7)
    router.deliver([change])
    assert removed == [(20, last_seq)]
    assert local.last_seq == {}
