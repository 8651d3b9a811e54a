"""ocfcluster: a cluster-wide event broker after the Open Cluster Framework's Event Notification API.

The names a program needs are importable from here: :func:`connect` (blocking) and :mod:`ocfcluster.client.aio`
(asyncio). The function-for-function OCF API is :mod:`ocfcluster.ocf`.
"""

from __future__ import annotations

__version__ = "0.1.0"

__all__ = ["__version__"]
