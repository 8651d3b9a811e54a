"""Mistakes in publishing, event messages and numbers of the library, patched into the process of a check."""

from __future__ import annotations

import errno
import struct
import time
from typing import Any

from ocfcluster.client import events as events_module
from ocfcluster.client import producer as producer_module
from ocfcluster.client import session as session_module
from ocfcluster.client.connection import Connection
from ocfcluster.client.events import Event, TopicInfo
from ocfcluster.client.eventsocket import EventSocket, Frame
from ocfcluster.client.producer import Batch, Producer
from ocfcluster.client.publisher import Publisher
from ocfcluster.client.subscription_state import SubscriptionState
from ocfcluster.errors import (
    client_error,
)
from ocfcluster.wire import event as event_module
from tests.conformance.mutation import Mutation, Side, collector, wrap

MUTATIONS: list[Mutation] = []
mutation = collector(MUTATIONS, Side.CLIENT)


def _change_runs(change: Any) -> None:
    """``change(arguments)`` alters the keyword arguments and ``events`` of each run that is built."""

    def build(
        original: Any, kind: int, topic: int, producer: int, number: int, events: Any, **named: Any
    ) -> Any:
        named["events"] = events
        change(named)
        return original(kind, topic, producer, number, named.pop("events"), **named)

    wrap(producer_module, "build_run", build)


def _set_run(key: str, value: Any) -> None:
    def change(named: dict[str, Any]) -> None:
        named[key] = value(named[key])

    _change_runs(change)


@mutation("A12", "publishing_from_many_threads")
def bursts_go_out_backwards() -> None:
    """Publications that gathered while the agent was busy go out in the reverse order."""
    _set_run("events", lambda events: list(events)[::-1])


# --- A15: publishing ----------------------------------------------------------------------------------------------


@mutation("A15", "receipts_tell_the_place", "receipts_of_a_burst")
def receipts_are_off_by_one() -> None:
    """A receipt tells the seq of the event behind its own."""

    def outcome(original: Any, self: Batch, index: int, count: int) -> tuple[int, int]:
        seq, ev_id = original(self, index, count)
        return seq + 1, ev_id

    wrap(Batch, "outcome", outcome)


@mutation("A15", "receipts_of_a_burst")
def all_receipts_of_a_burst_are_alike() -> None:
    """Every receipt of a burst tells the place of its first event."""
    wrap(Batch, "outcome", lambda original, self, _index, count: original(self, 0, count))


@mutation("A15", "reply_ids_are_wide")
def reply_ids_have_32_bits() -> None:
    """The upper half of re_id is lost."""
    _set_run("re_id", lambda re_id: re_id & 0xFFFF_FFFF)


@mutation("A15", "too_large_is_refused")
def no_event_is_too_large() -> None:
    """publish does not look at the size of an event."""
    wrap(Publisher, "_check_size", lambda _original, _self, _connection, _size: None)


@mutation("A15", "refused_publications_say_why")
def unknown_topics_have_another_errno() -> None:
    """Publishing to an unknown topic gives ENOENT."""
    wrap(session_module, "_error_of", lambda _original, _kind, body: client_error(errno.ENOENT, body.message))


@mutation("A15", "no_room_is_said_in_time")
def no_room_is_said_at_once() -> None:
    """publish gives EAGAIN without waiting for its timeout."""

    def wait(
        original: Any, self: Publisher, connection: Any, topic: Any, producer: Producer, size: int, _: Any
    ) -> Any:
        return original(self, connection, topic, producer, size, time.monotonic())

    wrap(Publisher, "_wait_for_room", wait)


@mutation("A15", "waiting_for_oneself_is_refused")
def waiting_for_oneself_is_not_noticed() -> None:
    """publish waits for room that only the calling thread could make."""
    wrap(Connection, "_refuse_deadlock", lambda _original, _self: None)


@mutation("A15", "user_properties_travel")
def properties_of_the_first_are_everybodys() -> None:
    """Publications join a run that has other properties than theirs."""
    wrap(
        Batch,
        "joins",
        lambda original, self, topic_id, re_id, _, size: original(
            self, topic_id, re_id, self.properties, size
        ),
    )


@mutation("A16", "created_listed_removed")
def the_list_forgets_scopes() -> None:
    """Every topic in the list is global."""
    original = TopicInfo.of

    def of(_: type[TopicInfo], body: Any) -> TopicInfo:
        info = original(body)
        return TopicInfo(info.name, info.topic_id, "global", info.last_seq, info.subscribers, info.aliases)

    TopicInfo.of = classmethod(of)  # type: ignore[assignment,method-assign]


# --- E1 to E5: the event message ----------------------------------------------------------------------------------


@mutation("E1", "header_then_topic_properties_data", "declared_with_construct")
def size_leaves_the_data_out() -> None:
    """The field size of an event message counts up to the data."""

    def encode(original: Any, *arguments: Any, **named: Any) -> bytes:
        message = original(*arguments, **named)
        return message[4:8] + message[4:]

    wrap(events_module, "encode_event", encode)


@mutation("E2", "data_is_opaque")
def data_ends_at_a_nul() -> None:
    """Data is taken for a C string."""
    _set_run("events", lambda events: [bytes(event).split(b"\0")[0] for event in events])


@mutation("E2", "empty_events_count")
def empty_events_are_skipped() -> None:
    """Events without data are not given to the program."""

    def take(original: Any, self: EventSocket) -> Event | None:
        while (event := original(self)) is not None and event.data == b"":
            pass
        return event

    wrap(EventSocket, "take_event", take)


@mutation("E3", "seq_counts_from_one")
def seq_counts_from_zero() -> None:
    """The first event of a topic has the seq 0."""
    Event.seq = property(lambda event: event.run.seq + event.index - 1)  # type: ignore[misc,assignment]


@mutation("E3", "folding")
def numbers_are_cut_and_not_folded() -> None:
    """The int32 fields are the lower 31 bits, so that 2^31 becomes 0."""
    for module in (events_module, event_module):
        module.fold32 = lambda number: number & 0x7FFF_FFFF  # type: ignore[attr-defined]


@mutation("E4", "origin_and_time")
def the_publish_time_is_in_milliseconds() -> None:
    """Runs carry their publish time in another unit."""
    _set_run("time_ns", lambda time_ns: time_ns // 1_000_000)


@mutation("E4", "user_properties")
def properties_are_not_given_to_the_program() -> None:
    """Events come without their user properties."""
    events_module.decode_properties = lambda _encoded: {}  # type: ignore[attr-defined]


@mutation("E5", "little_endian_at_fixed_places")
def the_image_is_big_endian() -> None:
    """The event message is in network byte order."""
    event_module.FIXED = struct.Struct(event_module.FIXED.format.replace("<", ">"))  # type: ignore[misc]


# --- S1 and S3: the order and its beginning -----------------------------------------------------------------------


@mutation("S1", "one_order_for_all_subscribers")
def a_frame_comes_twice() -> None:
    """The events of every tenth frame are given to the program twice."""
    frames = 0

    def opened(original: Any, self: EventSocket, message: bytes) -> Frame:
        nonlocal frames
        frames += 1
        frame = original(self, message)
        return frame._replace(runs=frame.runs * 2) if frames % 10 == 0 else frame

    wrap(EventSocket, "_open", opened)


@mutation("S3", "the_start_is_known", "starts_of_several_topics")
def the_start_is_told_one_too_early() -> None:
    """A subscription says that it starts with the last event before its first."""

    def accept(original: Any, self: SubscriptionState, answer: Any, *more: Any) -> None:
        original(self, answer, *more)
        self.starts = {
            topic: type(start)(start.topic, start.topic_id, start.next_seq - 1, start.local)
            for topic, start in self.starts.items()
        }

    wrap(SubscriptionState, "accept", accept)


@mutation("S3", "the_start_is_now", "the_start_is_known")
def the_first_frame_is_lost() -> None:
    """What comes first after a subscription has started is dropped."""
    started: set[EventSocket] = set()

    def peek(original: Any, self: EventSocket) -> Frame | None:
        frame = original(self)
        if frame is None or self in started:
            return frame  # type: ignore[no-any-return]
        started.add(self)
        self._discard()
        return original(self)  # type: ignore[no-any-return]

    wrap(EventSocket, "_peek", peek)
