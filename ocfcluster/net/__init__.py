"""Transports: UDP multicast, UDP unicast fan-out and in-memory, behind ``net.transport.Transport``."""
