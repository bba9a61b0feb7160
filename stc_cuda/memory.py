"""Memory of large results on the CPU, which is kept from one call to the next.

The system takes back large pieces of memory that are freed, and hands them out again as pages that fault and are
cleared one by one; that takes as long as a scan of the same size. So blocks from 2 MiB up stay here when the last
tensor in them is freed, and the next result takes one that is of its size or at most a quarter larger. At most a
sixteenth of the machine's memory is kept, or as many MiB as the environment variable ``STC_CUDA_CPU_CACHE_MB`` says
when stc_cuda is imported; 0 keeps nothing. On systems other than Linux PyTorch's allocator has it all and nothing is
kept.
"""

from __future__ import annotations

from ._extension import extension

__all__ = ["cache_limit", "cached_bytes", "empty_cache"]


def cached_bytes() -> int:
    """Bytes that are kept and that no tensor uses."""
    return extension.cached_bytes()


def cache_limit() -> int:
    """The most bytes that are kept."""
    return extension.cache_limit()


def empty_cache() -> int:
    """Gives the kept memory back to the system, and returns how many bytes it was."""
    return extension.empty_cache()
