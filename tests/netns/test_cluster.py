"""The clusters of the tests: what their agents are configured with, and what happens when one fails."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from ocfcluster.agent.config import load
from tests.cluster import ClusterError, LoopbackCluster, toml


def test_configurations_are_toml_that_says_what_was_asked_for() -> None:
    cluster = LoopbackCluster(
        2, topics=["news", ("here", "local")], limits={"event_bytes": 4096}, network={"mtu": 9000}
    )
    file = cluster.directory / "1.toml"
    file.write_text(toml(cluster.configuration(1)))
    try:
        assert load(file).topics[1].scope == "local"
    finally:
        file.unlink()
        cluster.directory.rmdir()
    one, two = (tomllib.loads(toml(cluster.configuration(i))) for i in (1, 2))
    assert one["node"] == {
        "id": 1,
        "state_dir": str(cluster.state_dir(1)),
        "socket": cluster.socket(1),
    }
    assert one["cluster"] == two["cluster"]
    assert one["cluster"]["nodes"] == [1, 2]
    assert one["network"] == two["network"]
    assert (one["network"]["interface"], one["network"]["mtu"]) == ("127.0.0.1", 9000)
    assert one["limits"] == {"event_bytes": 4096}
    assert one["security"] == {"insecure": True}
    assert one["topics"] == [{"name": "news", "scope": "global"}, {"name": "here", "scope": "local"}]


def test_an_agent_that_does_not_start_is_shown_with_its_last_words(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with (
        pytest.raises(ClusterError, match="the agent of node 1 ended with"),
        LoopbackCluster(2, node={"colour": "green"}) as cluster,
    ):
        pytest.fail(f"an agent accepted an unknown key: {cluster.status(1)}")
    shown = capsys.readouterr().out.strip().rpartition(" ")[2]
    kept = Path(shown)
    assert sorted(path.name for path in kept.glob("*.log")) == ["1.log", "2.log"]
    for path in kept.iterdir():
        path.unlink()
    kept.rmdir()
