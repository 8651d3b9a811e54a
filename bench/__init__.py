"""The benchmark: ``python -m bench.run`` measures, ``python -m bench.profile`` says where the time goes."""
