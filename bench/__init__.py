"""Latency and memory of stc_cuda beside its rivals: ``python -m bench``."""
