"""Which version of the protocol a node speaks, so that nodes of one version and of the next work together.

All members speak the version of their configuration, and an agent can speak each from ``Settings.versions``: its own
build's and the one before, so that nodes are upgraded one at a time. Who has no configuration yet speaks the newest
that it can, and from the first datagram in an older one on that one: a node of the older build does not understand the
newer, but is understood.
"""

from __future__ import annotations

from ocfcluster.protocol.settings import Configuration, Settings


class Spoken:
    """``version`` is the one that this node speaks."""

    __slots__ = ("version", "_newest", "_newer", "_oldest")

    def __init__(self, settings: Settings) -> None:
        self._oldest, self._newest = settings.versions
        self._newer = 0
        self.version = self._newest

    def fault(self, configuration: Configuration) -> str:
        """Why this node cannot be in a cluster with this configuration; empty: it can."""
        version = configuration.version
        if self._oldest <= version <= self._newest:
            return ""
        which = "an older" if version < self._oldest else "a newer"
        return (
            f"the cluster speaks version {version} of the protocol and this agent {self._oldest} to {self._newest}: "
            f"run {which} agent"
        )

    def enter(self, configuration: Configuration | None) -> None:
        """Speak as the configuration in force says."""
        if configuration is not None:
            self.version = configuration.version

    def understands(self, version: int) -> bool:
        return self._oldest <= version <= self._newest

    def lower(self, version: int) -> bool:
        """Somebody whom this node understands speaks this version, and this node has no configuration: whether it
        speaks another one from here on."""
        if version >= self.version:
            return False
        self.version = version
        return True

    def is_news(self, version: int) -> bool:
        """Whether a version that is not understood is newer than any heard before."""
        if version <= max(self._newest, self._newer):
            return False
        self._newer = version
        return True
