"""The benchmarks: ``python -m bench.run`` measures, ``bench.compare`` does the same work on other systems beside it,
``bench.failover`` measures pauses, and ``bench.profile`` says where the time goes.
"""
