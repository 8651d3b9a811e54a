"""What a program may pass: each check raises InvalidArgument with a text that says what is right.

The checks are the library's only guard between a program's mistake and an error from deep inside, so every public
call makes them first, before anything has happened. Those of the hot path cost a comparison or two.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Iterable, Mapping
from typing import Final, overload

from ocfcluster.errors import InvalidArgument
from ocfcluster.limits import (
    CLIENT_NAME_BYTES,
    LONGEST_TIMEOUT_S,
    TOPIC_NAME_BYTES,
    TOPICS_PER_SUBSCRIPTION,
)
from ocfcluster.wire.filter import Filter, encode_filter
from ocfcluster.wire.filter_text import parse_filter
from ocfcluster.wire.frames import OnSlow
from ocfcluster.wire.properties import encode_properties

Data = bytes | bytearray | memoryview
_RE_ID_END: Final = 1 << 64
_POLICIES: Final = {policy.name.lower(): int(policy) for policy in OnSlow}


def _kind(value: object) -> str:
    return type(value).__name__


def as_bytes(data: object) -> bytes:
    """The data of an event, unchangeable."""
    if type(data) is bytes:
        return data
    if isinstance(data, bytes | bytearray | memoryview):
        return bytes(data)
    hint = ": encode it first" if isinstance(data, str) else ""
    raise InvalidArgument(f"event data is bytes, not {_kind(data)}{hint}")


def as_events(datas: Iterable[Data]) -> list[bytes]:
    """The data of at least one event. Costs no Python step per event where all are bytes."""
    if isinstance(datas, bytes | bytearray | memoryview | str) or not isinstance(datas, Iterable):
        raise InvalidArgument(f"publish_many takes a list or another iterable of bytes, not {_kind(datas)}")
    events: list[Data] = list(datas)
    if not events:
        raise InvalidArgument("publish_many needs at least one event")
    if set(map(type, events)) == {bytes}:
        return events  # type: ignore[return-value]  # the line above says that they are bytes
    return list(map(as_bytes, events))


def as_properties(properties: Mapping[str, str] | None) -> bytes:
    """The encoded properties of a publication; no bytes for None and for none."""
    if properties is None:
        return b""
    if not isinstance(properties, Mapping):
        raise InvalidArgument(f"properties are a dict of str to str, not {_kind(properties)}")
    return encode_properties(properties)


def check_re_id(re_id: int) -> None:
    """What is an ev_id, or 0."""
    if not isinstance(re_id, int):
        raise InvalidArgument(f"re_id is the ev_id of an event, an int, not {_kind(re_id)}")
    if not 0 <= re_id < _RE_ID_END:
        raise InvalidArgument(f"re_id {re_id} is no 64-bit id: 0 to 2^64 - 1 are allowed")


@overload
def check_timeout(timeout: float) -> float: ...
@overload
def check_timeout(timeout: float | None) -> float | None: ...
def check_timeout(timeout: float | None) -> float | None:
    """The timeout: seconds, or None. One in the past is over at once; beyond LONGEST_TIMEOUT_S it ends there."""
    if timeout is None:
        return None
    if not isinstance(timeout, int | float):
        raise InvalidArgument(f"timeout is a number of seconds, or None for no end, not {_kind(timeout)}")
    if not math.isfinite(timeout):
        raise InvalidArgument(f"timeout {timeout} is no number of seconds; None is for no end")
    return min(timeout, LONGEST_TIMEOUT_S)


def check_timeout_ms(timeout_ms: object) -> float | None:
    """Seconds, or None, from the milliseconds of the OCF functions, whose negative numbers mean no end."""
    if not isinstance(timeout_ms, int | float) or not math.isfinite(timeout_ms):
        raise InvalidArgument(f"timeout is a number of milliseconds, -1 for no end, not {timeout_ms!r:.80}")
    return None if timeout_ms < 0 else min(timeout_ms / 1000, LONGEST_TIMEOUT_S)


def check_callback(on_event: object) -> None:
    """What can be called, or None."""
    if on_event is not None and not callable(on_event):
        raise InvalidArgument(f"on_event is a function that takes an event, or None, not {_kind(on_event)}")
    if inspect.iscoroutinefunction(on_event):
        raise InvalidArgument("on_event is a plain function: nobody would await what an async one gives")


def check_name(name: str) -> str:
    """The name of a client."""
    if not isinstance(name, str):
        raise InvalidArgument(f"a client's name is a str, not {_kind(name)}")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise InvalidArgument(f"name {name!r:.80}: only text that UTF-8 has is allowed") from None
    if size > CLIENT_NAME_BYTES:
        raise InvalidArgument(f"a client's name has at most {CLIENT_NAME_BYTES} bytes, not {size}")
    return name


def check_socket(path: str | os.PathLike[str] | None) -> str | None:
    """The path of an agent's socket, or None."""
    if isinstance(path, os.PathLike):
        path = os.fspath(path)
    if path is not None and not isinstance(path, str):
        raise InvalidArgument(f"socket is the path of the agent's socket, a str, not {_kind(path)}")
    return path


def check_topic(name: str) -> str:
    """The name, if it can be a topic's."""
    if not isinstance(name, str):
        raise InvalidArgument(f"a topic is named by a str, not {_kind(name)}")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise InvalidArgument(f"topic {name!r:.80}: only text that UTF-8 has is allowed") from None
    if not 1 <= size <= TOPIC_NAME_BYTES or "\0" in name:
        raise InvalidArgument(
            f"topic {name!r:.80}: 1 to {TOPIC_NAME_BYTES} bytes of UTF-8 without NUL are allowed"
        )
    return name


def as_topics(topics: object) -> list[str]:
    """The topics of a subscription, given as one or as several; ``check_topic`` looks at each."""
    if isinstance(topics, str):
        return [topics]
    if isinstance(topics, bytes) or not isinstance(topics, Iterable):
        raise InvalidArgument(f"subscribe takes the name of a topic or a list of names, not {_kind(topics)}")
    names = list(topics)
    if not 1 <= len(names) <= TOPICS_PER_SUBSCRIPTION:
        raise InvalidArgument(f"a subscription has 1 to {TOPICS_PER_SUBSCRIPTION} topics")
    return names


def as_filter(given: object) -> bytes:
    """A subscription's filter for the agent, given as one or as its text; None: no filter."""
    if given is None:
        return b""
    if isinstance(given, str):
        return encode_filter(parse_filter(given))
    if not isinstance(given, Filter):
        raise InvalidArgument(f"filter is a Filter or the text of one, not {_kind(given)}")
    return encode_filter(given)


def as_policy(on_slow: object) -> int:
    """What becomes of a subscription that does not take its events, for the agent."""
    policy = _POLICIES.get(on_slow) if isinstance(on_slow, str) else None
    if policy is None:
        raise InvalidArgument(f"on_slow {on_slow!r:.80}: it is {', '.join(map(repr, _POLICIES))}")
    return policy
