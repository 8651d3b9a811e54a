"""What the cluster publishes about itself on reserved topics: the events' data, as pure functions.

Programs use it to read such events (``docs/api.md``); the agent uses it to make them, at their place in the order.
"""

from __future__ import annotations
