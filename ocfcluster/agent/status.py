"""The status document: plain values for `ocfcluster status`, programs and Prometheus."""

from __future__ import annotations

import time
from itertools import islice
from typing import TYPE_CHECKING, Any

from ocfcluster import __version__
from ocfcluster.agent.keys import other_members
from ocfcluster.agent.links import links_document, networks_document
from ocfcluster.agent.logfile import standard_error
from ocfcluster.agent.stuck import oldest
from ocfcluster.limits import MILLISECOND_NS, SECOND_NS, STATUS_ENTRIES

if TYPE_CHECKING:
    from ocfcluster.agent.daemon import Agent


def status_document(agent: Agent) -> dict[str, Any]:
    """Everything the node says of itself, and what this agent has: clients, subscriptions, counters, warnings."""
    now = time.monotonic_ns()
    hub = agent.hub
    document = agent.node.status(now)
    programs = [client for client in agent.clients.values() if not agent.components.is_own(client)]
    document["version"] = __version__
    document["uptime_s"] = (now - agent.started_at) // SECOND_NS
    document["socket"] = agent.socket_path
    document["state_dir"] = str(agent.state_dir.path)
    document["disk_error"] = agent.disk_error
    document["log_error"] = standard_error.error
    document["log_lost"] = standard_error.lost
    document["evictions"] = agent.evictions
    document["evicted_because"] = agent.evicted_because
    document["transport"] = agent.config.transport()
    document["address"] = [str(part) for part in agent.transport.address[:2]]
    document["networks"] = networks_document(agent.config, agent.transport)
    suspicion_ns = agent.config.timing.suspicion_ms * MILLISECOND_NS
    document["links"] = links_document(agent.links(), suspicion_ns, now)
    document["receive_buffer_bytes"] = agent.transport.receive_buffer_bytes
    if agent.hooks is not None:
        document["hooks"] = agent.hooks.document()
    if agent.reloading.reloader is not None:
        document["configuration"] = agent.reloading.reloader.document()
    document["warnings"] = [*agent.warnings, *agent.components.warnings()]
    document["components"] = agent.components.status()
    document["clients"] = [
        {
            "connection": client.connection,
            "name": client.name,
            "library": client.library,
            "pid": client.peer.pid,
            "uid": client.peer.uid,
            "watched_by_pidfd": client.pidfd >= 0,
            "producers": len(client.producers),
            "memberships": 0 if client.memberships is None else len(client.memberships),
            "subscriptions": len(client.line.subscriptions),
            "inbox_bytes": client.inbox_bytes,
            "output_bytes": client.session.output_bytes,
            "oldest_outstanding": oldest(client.line.subscriptions, now),
        }
        for client in islice(programs, STATUS_ENTRIES)
    ]
    own = {client.line for client in agent.clients.values() if agent.components.is_own(client)}
    subscriptions = sorted(
        (one for one in hub.subscriptions() if one.line not in own),
        key=lambda subscription: -subscription.queued_bytes,
    )
    document["client_count"] = len(programs)
    document["subscription_count"] = len(subscriptions)
    document["subscriptions"] = [
        {
            "connection": subscription.line.connection,
            "subscription": subscription.number,
            "topics": sorted(subscription.topics.values())[:16],
            "topic_count": len(subscription.topics),
            "callback": subscription.callback,
            "queue_bytes": subscription.queued_bytes,
            "full": subscription.full,
            "dropping": subscription.dropping and subscription.replay is None,
            "catching_up": subscription.replay is not None,
            "blocked": subscription.blocked,
            "out_of_line": subscription.out_of_line,
            "on_slow": subscription.on_slow.name.lower(),
            "filter": "" if subscription.filter is None else str(subscription.filter.filter),
        }
        for subscription in subscriptions[:STATUS_ENTRIES]
    ]
    document["queues_held_bytes"] = hub.held_bytes
    document["retained_bytes"] = agent.node.retained.bytes + agent.local.retained.bytes
    document["intake_held_bytes"] = agent.intake.inbox_bytes
    document["counters"] = {
        **agent.counters.as_dict(),
        "frames": hub.frames,
        "gaps": hub.gaps,
        "slow_fallbacks": hub.fallbacks,
        "slow_dropped": hub.dropped,
        "slow_disconnected": hub.disconnected,
        "runs_left_out": hub.left_out,
    }
    document["network_counters"] = {**agent.transport.counters, **agent.keys.counters()}
    document["sealing"] = agent.keys.document(agent.config.node.id, other_members(agent))
    return document
