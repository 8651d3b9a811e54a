"""Wrong arguments are InvalidArgument with a text that says what is right, in every API, and nothing is done."""

from __future__ import annotations

import asyncio
import gc
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ocfcluster
from ocfcluster import errors, ocf
from tests.unit.fake_agent import Cluster, FakeAgent

NAN, INFINITE = float("nan"), float("inf")


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeAgent]:
    cluster = Cluster()
    cluster.create("t")
    with FakeAgent(str(tmp_path_factory.mktemp("agent") / "agent.sock"), cluster) as fake:
        yield fake


async def _outcome(call: Callable[[Any], Any], client: Any) -> None:
    made = call(client)
    if inspect.isawaitable(made):
        await made


# Of both APIs: the call, and what its error says.
CALLS: list[tuple[Callable[[Any], Any], str]] = [
    (lambda c: c.publish("t", "text"), "bytes, not str"),
    (lambda c: c.publish("t", None), "bytes, not NoneType"),
    (lambda c: c.publish(5, b""), "named by a str"),
    (lambda c: c.publish("t", b"", properties=5), "dict of str to str"),
    (lambda c: c.publish("t", b"", properties=[]), "dict of str to str"),
    (lambda c: c.publish("t", b"", properties={1: "v"}), "keys must be str"),
    (lambda c: c.publish("t", b"", properties={"k": 1}), "values must be str"),
    (lambda c: c.publish("t", b"", re_id="7"), "an int, not str"),
    (lambda c: c.publish("t", b"", re_id=None), "an int, not NoneType"),
    (lambda c: c.publish("t", b"", re_id=1.0), "an int, not float"),
    (lambda c: c.publish("t", b"", re_id=-1), "64-bit"),
    (lambda c: c.publish("t", b"", re_id=1 << 64), "64-bit"),
    (lambda c: c.publish("t", b"", timeout="1"), "number of seconds"),
    (lambda c: c.publish("t", b"", timeout=NAN), "number of seconds"),
    (lambda c: c.publish_many("t", b"bytes"), "iterable of bytes, not bytes"),
    (lambda c: c.publish_many("t", "text"), "iterable of bytes, not str"),
    (lambda c: c.publish_many("t", 5), "iterable of bytes, not int"),
    (lambda c: c.publish_many("t", [b"", 5]), "bytes, not int"),
    (lambda c: c.publish_many("t", []), "at least one"),
    (lambda c: c.publish_many("t", iter(())), "at least one"),
    (lambda c: c.publish_many("t", [b""], properties="k"), "dict of str to str"),
    (lambda c: c.publish_many("t", [b""], re_id="7"), "an int, not str"),
    (lambda c: c.publish_many("t", [b""], timeout=[]), "number of seconds"),
    (lambda c: c.flush("1"), "number of seconds"),
    (lambda c: c.flush(INFINITE), "number of seconds"),
    (lambda c: c.subscribe(5), "name of a topic or a list"),
    (lambda c: c.subscribe(None), "name of a topic or a list"),
    (lambda c: c.subscribe(b"t"), "name of a topic or a list"),
    (lambda c: c.subscribe([]), "1 to"),
    (lambda c: c.subscribe([5]), "named by a str"),
    (lambda c: c.subscribe("t", on_event=5), "on_event is a function"),
    (lambda c: c.subscribe("t", on_event=_outcome), "on_event is a plain function"),
    (lambda c: c.publisher(5), "named by a str"),
    (lambda c: c.topic(5), "named by a str"),
    (lambda c: c.create_topic("x", 5), "'global' or 'local'"),
    (lambda c: c.create_topic("x", timeout="1"), "number of seconds"),
    (lambda c: c.status(timeout="1"), "number of seconds"),
]


@pytest.mark.parametrize("gathers", [False, True])
@pytest.mark.parametrize(("call", "says"), CALLS)
def test_wrong_arguments(agent: FakeAgent, call: Callable[[Any], Any], says: str, gathers: bool) -> None:
    async def in_asyncio() -> None:
        async with ocfcluster.aio.connect(agent.path) as client:
            for _ in range(3 if gathers else 0):
                await client.publish("t", b"")
            with pytest.raises(errors.InvalidArgument, match=says):
                await _outcome(call, client)

    with ocfcluster.connect(agent.path) as client:
        for _ in range(3 if gathers else 0):
            client.publish("t", b"")
        with pytest.raises(errors.InvalidArgument, match=says):
            call(client)
    asyncio.run(in_asyncio())


def test_wrong_timeouts_of_what_a_client_gives(agent: FakeAgent) -> None:
    async def in_asyncio() -> None:
        async with ocfcluster.aio.connect(agent.path) as client, client.subscribe("t") as events:
            receipt = await client.publish("t", b"")
            for awaitable in (events.get("1"), events.get_run("1"), receipt.wait("1")):  # type: ignore[arg-type]
                with pytest.raises(errors.InvalidArgument, match="number of seconds"):
                    await awaitable

    with ocfcluster.connect(agent.path) as client, client.subscribe("t") as events:
        receipt = client.publish("t", b"")
        for call in (events.get, events.get_run, receipt.wait, client.dispatch):
            with pytest.raises(errors.InvalidArgument, match="number of seconds"):
                call("1")  # type: ignore[operator]
    asyncio.run(in_asyncio())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"name": 5}, "name is a str"),
        ({"name": "x" * 65}, "at most 64 bytes"),
        ({"name": "\udc80"}, "UTF-8"),
        ({"timeout": "1"}, "number of seconds"),
        ({"socket": 5}, "path of the agent"),
    ],
)
def test_connect(
    agent: FakeAgent, arguments: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ignored: list[object] = []
    monkeypatch.setattr("sys.unraisablehook", ignored.append)

    async def in_asyncio() -> None:
        async with ocfcluster.aio.connect(**{"socket": agent.path, **arguments}):
            pass

    with pytest.raises(errors.InvalidArgument, match=says):
        ocfcluster.connect(**{"socket": agent.path, **arguments})
    with pytest.raises(errors.InvalidArgument, match=says):
        asyncio.run(in_asyncio())
    gc.collect()
    assert ignored == []


def test_iterables_are_lists(agent: FakeAgent) -> None:
    with ocfcluster.connect(Path(agent.path)) as client, client.subscribe(iter(["t"])) as events:
        assert client.publish_many("t", (b"%d" % i for i in range(3))).wait(2).count == 3
        assert [next(events).data for _ in range(3)] == [b"0", b"1", b"2"]


def test_the_ocf_functions(agent: FakeAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCFCLUSTER_SOCKET", agent.path)
    monkeypatch.setattr(ocf, "_client", None)
    ed = ocf.oc_ev_subscribe("t")
    wrong: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
        (ocf.oc_ev_subscribe, (5,)),
        (ocf.oc_ev_subscribe, ("t", 5)),
        (ocf.oc_ev_unsubscribe, ([],)),
        (ocf.oc_ev_get_fd, ("0",)),
        (ocf.oc_ev_get_event, (ed, "1")),
        (ocf.oc_ev_get_event, (ed, NAN)),
        (ocf.oc_ev_publish, ("t", "text")),
        (ocf.oc_ev_publish, ("t", b"", "7")),
        (ocf.oc_ev_publish, ("t", b"", 0, 5)),
        (ocf.oc_ev_publish, ("t", b"", 0, None, "1")),
        (ocf.oc_ev_topic_create, (5,)),
    ]
    try:
        for call, arguments in wrong:
            with pytest.raises(errors.InvalidArgument):
                call(*arguments)
    finally:
        ocf.oc_ev_unsubscribe(ed)
        ocf._default_client().close()


def test_a_path_that_no_socket_has_gets_no_advice_to_start_an_agent() -> None:
    with pytest.raises(errors.AgentUnreachable, match="too long") as caught:
        ocfcluster.connect("/tmp/" + "x" * 200)
    assert "ocfcluster agent" not in str(caught.value)
