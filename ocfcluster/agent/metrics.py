"""What the agent counts, and how a status document looks to Prometheus."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any, Final

_NAME: Final = re.compile(r"[^a-zA-Z0-9_]")


@dataclass(slots=True)
class Counters:
    """Of one agent's life. Counted per run or rarer, never per event."""

    bursts: int = 0  # network reads that brought something
    buffers_received: int = 0
    buffers_sent: int = 0
    runs_published: int = 0
    runs_published_bytes: int = 0
    events_published: int = 0
    runs_refused: int = 0  # they entered the stream as void runs
    runs_local: int = 0
    runs_delivered: int = 0
    runs_delivered_bytes: int = 0
    events_delivered: int = 0
    views: int = 0  # configurations that came into force
    receipts: int = 0
    requests: int = 0
    requests_not_permitted: int = (
        0  # refused because the client has no right to it; publications are runs_refused
    )
    clients_accepted: int = 0
    clients_refused: int = 0
    clients_failed: int = 0  # malformed, or never read their answers
    persists: int = 0
    persists_failed: int = 0
    snapshots_given: int = 0
    snapshots_given_bytes: int = 0
    snapshots_refused: int = 0  # asked for, and this node had none to give, or gives others enough already
    snapshots_failed: int = 0  # connections that broke, stood still, or were no node's
    snapshots_fetched: int = 0
    snapshots_fetched_bytes: int = 0
    snapshot_fetches_failed: int = 0
    faults: int = 0

    def as_dict(self) -> dict[str, int]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def prometheus_text(document: dict[str, Any], prefix: str = "ocfcluster") -> str:
    """The numbers of a status document in Prometheus' text format; what is no number is left out.

    Counters end in ``_total``, everything else is a gauge. ``cluster`` and ``node_id`` become labels.
    """
    labels = (
        f'{{cluster="{_escape(str(document.get("cluster", "")))}",node_id="{document.get("node_id", 0)}"}}'
    )
    lines: list[str] = []
    _collect(document, prefix, labels, lines, counting=False)
    return "".join(f"{line}\n" for line in lines)


_COUNTING: Final = ("counters", "network_counters", "datagrams", "recovery")  # tables that only grow


def _collect(value: Any, name: str, labels: str, lines: list[str], *, counting: bool) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            _collect(
                inner, f"{name}_{_NAME.sub('_', str(key))}", labels, lines,
                counting=counting or key in _COUNTING,
            )  # fmt: skip
    elif isinstance(value, int | float):
        full = f"{name}_total" if counting else name
        lines.append(f"# TYPE {full} {'counter' if counting else 'gauge'}")
        lines.append(f"{full}{labels} {int(value) if isinstance(value, bool) else value}")


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
