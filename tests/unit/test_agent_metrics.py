"""A status document in Prometheus' text format."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from ocfcluster.agent.metrics import prometheus_text

DOCUMENT = {
    "cluster": 'a "quoted" name',
    "node_id": 3,
    "state": "active",
    "transport": None,
    "data_plane": {"held": 17, "window bytes": 5},
    "counters": {"runs": 4},
    "datagrams": {"malformed": 2},
    "recovery": {"attempts": 3},
    "table": {1: 1},
    "formed": True,
    "members": [{"node_id": 1}],
}


def test_prometheus_reads_numbers_with_labels_and_kinds() -> None:
    read = {
        family.name: (family.type, family.samples[0].value, family.samples[0].labels)
        for family in text_string_to_metric_families(prometheus_text(DOCUMENT))
    }
    labels = {"cluster": 'a "quoted" name', "node_id": "3"}
    assert read == {
        "ocfcluster_node_id": ("gauge", 3, labels),
        "ocfcluster_data_plane_held": ("gauge", 17, labels),
        "ocfcluster_data_plane_window_bytes": ("gauge", 5, labels),
        "ocfcluster_counters_runs": ("counter", 4, labels),
        "ocfcluster_datagrams_malformed": ("counter", 2, labels),
        "ocfcluster_recovery_attempts": ("counter", 3, labels),
        "ocfcluster_table_1": ("gauge", 1, labels),
        "ocfcluster_formed": ("gauge", 1, labels),
    }
