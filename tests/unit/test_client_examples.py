"""The examples of docs/api.md run, and agents that do not serve."""

from __future__ import annotations

import re
import socket
import threading
import time
from pathlib import Path

import pytest
import structlog

import ocfcluster
from ocfcluster import errors, ocf
from ocfcluster.components.membership import MembershipCode, MembershipEvent, Node
from ocfcluster.ocf import oc_ev_publish, oc_ev_unsubscribe
from ocfcluster.wire.run import RunKind, build_run
from tests.unit.fake_agent import Cluster, FakeAgent

GUIDE = Path(__file__).parents[2] / "docs" / "api.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)


@pytest.mark.parametrize("number", range(2))
def test_the_guides_examples(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "agent.sock")
    monkeypatch.setenv("OCFCLUSTER_SOCKET", path)
    cluster = Cluster()
    cluster.create("orders")
    with FakeAgent(path, cluster):
        exec(compile(EXAMPLES[number], str(GUIDE), "exec"), {"__name__": "example"})
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("Published(topic='orders', seq=1")
    assert printed[1].startswith("1 b'471")


def test_the_guides_embedded_example(capsys: pytest.CaptureFixture[str]) -> None:
    structlog.reset_defaults()  # another test of this process may have set it up, and then its log is printed
    [example] = [one for one in EXAMPLES if "EmbeddedAgent" in one]
    exec(compile(example, str(GUIDE), "exec"), {"__name__": "example"})
    assert capsys.readouterr().out.splitlines()[1] == "1 b'4711'"


def test_the_guides_ocf_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "agent.sock")
    monkeypatch.setenv("OCFCLUSTER_SOCKET", path)
    monkeypatch.setattr(ocf, "_client", None)
    cluster = Cluster()
    cluster.create("orders")
    with FakeAgent(path, cluster):

        def drive() -> None:
            while not ocf._descriptors:
                time.sleep(0.005)
            oc_ev_publish("orders", b"4713").wait(3)
            while "4713" not in "".join(seen):
                seen.append(capsys.readouterr().out)
                time.sleep(0.005)
            for ed in list(ocf._descriptors):
                oc_ev_unsubscribe(ed)

        seen: list[str] = []
        thread = threading.Thread(target=drive)
        thread.start()
        exec(compile(EXAMPLES[-1], str(GUIDE), "exec"), {"__name__": "example"})
        thread.join(3)
        assert "orders 1 b'4713'" in "".join(seen)
        assert ocf._client is not None
        ocf._client.close()


def test_the_guides_filter_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = [text for text in EXAMPLES if "from_node" in text]
    path = str(tmp_path / "agent.sock")
    monkeypatch.setenv("OCFCLUSTER_SOCKET", path)
    cluster = Cluster()
    cluster.create("alarms")
    with FakeAgent(path, cluster):
        exec(compile(example, str(GUIDE), "exec"), {"__name__": "example"})
    written = 'severity == "high" and not present(test) and (zone startswith "eu-" or from_node(3))'
    assert capsys.readouterr().out == f"{written}\n"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("MembershipEvent.decode", ["2 [1]", "in () out (Node(node_id=2, born_on=1),)"]),
        ("MembershipFilter", ["<MembershipEvent NEW_MEMBERSHIP 2: members 1, out 2>"]),
    ],
)
def test_the_guides_membership_examples(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    expected: list[str],
) -> None:
    (example,) = [text for text in EXAMPLES if name in text]
    path = str(tmp_path / "agent.sock")
    monkeypatch.setenv("OCFCLUSTER_SOCKET", path)
    cluster = Cluster()
    topic_id = cluster.create("oc.membership").topic_id
    event = MembershipEvent(MembershipCode.NEW_MEMBERSHIP, 2, (Node(1, 1),), (), (Node(2, 1),))
    run = build_run(RunKind.PUBLICATION, topic_id, 0, 1, [event.encode()])
    with FakeAgent(path, cluster) as agent:

        def drive() -> None:
            while not agent.call(lambda: any(peer.subscribers for peer in agent._peers.values())):
                time.sleep(0.005)
            agent.call(lambda: agent.deliver(run, topic_id, 2, 1))
            agent.end_history("the loop of the example ends with its subscription")

        thread = threading.Thread(target=drive)
        thread.start()
        exec(compile(example, str(GUIDE), "exec"), {"__name__": "example"})
        thread.join(3)
    printed = capsys.readouterr().out.splitlines()
    assert printed[: len(expected)] == expected


@pytest.mark.parametrize("answers", [False, True])
def test_an_agent_that_does_not_welcome(tmp_path: Path, answers: bool) -> None:
    path = str(tmp_path / "agent.sock")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    accepted: list[socket.socket] = []

    def serve() -> None:
        stream, _ = listener.accept()
        stream.recv(1000)
        accepted.append(stream)
        if answers:
            stream.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    thread = threading.Thread(target=serve)
    thread.start()
    began = time.monotonic()
    with pytest.raises(errors.AgentUnreachable):
        ocfcluster.connect(path, timeout=0.2)
    assert time.monotonic() - began < 2
    thread.join(2)
    accepted[0].close()
    listener.close()
