"""The topic ``oc.local``: what this agent has to say about its own node. It never leaves the node.

It is no part of the replicated state: every agent has it, numbers it for itself, and forgets it when it ends. The
data of an event is one JSON object; its properties repeat what filters want to look at. docs/formats.md lists both.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from ocfcluster.agent.local import LocalTopics
from ocfcluster.ipc.delivery import Hub
from ocfcluster.limits import RECORD_HEADER_BYTES
from ocfcluster.protocol.effects import Topic
from ocfcluster.wire.frames import RECORD_HEADER, RecordFlags, RecordKind
from ocfcluster.wire.properties import encode_properties
from ocfcluster.wire.run import RunKind, build_run

TOPIC: Final = Topic(15, "oc.local", True)  # the last id below FIRST_TOPIC_ID: nobody can make one like it


def tell(
    hub: Hub,
    local: LocalTopics,
    node: tuple[int, int],
    document: Mapping[str, Any],
    properties: Mapping[str, str],
) -> None:
    """Publish ``document`` to whoever has subscribed here. ``node`` is this node's id and incarnation."""
    topic_id = TOPIC.topic_id
    if topic_id not in hub.by_topic:
        return
    seq = local.last_seq[topic_id] = local.last_seq.get(topic_id, 0) + 1
    now = time.time_ns()
    data = msgspec.json.encode(document)
    run = build_run(
        RunKind.PUBLICATION, topic_id, 0, seq, [data], time_ns=now, properties=encode_properties(properties)
    )
    header = RECORD_HEADER.pack(
        RECORD_HEADER_BYTES + len(run), RecordKind.RUN, RecordFlags.LOCAL, 0, 0, *node, 0, seq, local.take_ev_id(), now,
    )  # fmt: skip
    hub.deliver(topic_id, header, run, seq, seq)
