"""The daemon: one event loop around the sans-IO node, the network's sockets and the clients' sockets.

``daemon`` wires the parts; ``intake`` takes publications in, ``router`` hands deliveries out, ``requests`` answers
everything else a client asks. ``main.run_agent`` is what the command line starts.
"""
