"""Options that say what is kept of a topic, and how that is shown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import typer

from ocfcluster.limits import RETAINED_BYTES_PER_TOPIC
from ocfcluster.wire.topics import TopicSettings

if TYPE_CHECKING:
    from ocfcluster.client import TopicInfo

_MOST: Final = 0xFFFF_FFFF


def _option(most: int, keeps: str) -> Any:
    return typer.Option(min=0, max=most, help=f"Keep {keeps}. 0: no such bound.", show_default=False)


Events = Annotated[int | None, _option(_MOST, "the newest so many events")]
Bytes = Annotated[int | None, _option(RETAINED_BYTES_PER_TOPIC, "at most so many bytes of memory")]
Seconds = Annotated[int | None, _option(_MOST, "events for so many seconds")]


def altered(
    settings: TopicSettings, events: int | None, most_bytes: int | None, seconds: int | None
) -> TopicSettings:
    """``settings`` with the bounds that were given in the place of its own."""
    given = {"events": events, "bytes": most_bytes, "seconds": seconds}
    changes = {bound: value for bound, value in given.items() if value is not None}
    retention = msgspec.structs.replace(settings.retention, **changes)
    return msgspec.structs.replace(settings, retention=retention)


def document(topic: TopicInfo) -> dict[str, Any]:
    """The bounds, and what is kept now, as plain values."""
    retention = topic.settings.retention
    return {
        "retention": {"events": retention.events, "bytes": retention.bytes, "seconds": retention.seconds},
        "kept": {"events": topic.kept_events, "bytes": topic.kept_bytes, "first_seq": topic.kept_from},
    }


def rows(topic: TopicInfo) -> Iterator[tuple[str, str]]:
    """Headings and texts."""
    retention = topic.settings.retention
    bounds = [
        f"{value} {name}"
        for name, value in (
            ("events", retention.events), ("bytes", retention.bytes), ("seconds", retention.seconds)
        )
        if value
    ]  # fmt: skip
    yield "retention", "at most " + ", ".join(bounds) if bounds else "nothing is kept"
    if topic.kept_events:
        kept = f"{topic.kept_events} events from seq {topic.kept_from} on, {topic.kept_bytes} bytes"
        yield "kept now", kept
    elif bounds:
        yield "kept now", "nothing"
