from typing import Any

GRAPH_IS_FREED: str
NO_SECOND_DERIVATIVE: str

def build_info() -> dict[str, Any]: ...
def cached_bytes() -> int: ...
def cache_limit() -> int: ...
def empty_cache() -> int: ...
def cells() -> dict[str, dict[str, Any]]: ...
def plan(
    *,
    neuron: str,
    steps: int,
    samples: int,
    channels: int,
    height: int,
    width: int,
    kernel: int,
    groups: int,
    norm_groups: int,
    cuda: bool,
    double_precision: bool,
    spiking: bool,
    backward: bool,
    attached: bool,
    capability: int,
    shared_bytes_limit: int,
) -> dict[str, Any]: ...
