"""How cost grows with nodes, subscribers, publishers, topics, sizes and loss: ``python -m bench.growth --help``."""
