"""Formats: what goes over the network, over the local sockets and onto disk. Pure functions, no input or output.

``schema/`` declares each format with construct and is the specification; the codecs beside it are what runs, and
the tests hold both equal. Everything is little-endian.
"""
