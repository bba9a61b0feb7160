"""docs/neurons.md says what the neurons can do here and now."""

from __future__ import annotations

import pytest
import torch

from bench import neuron_table


@pytest.mark.emulated
def test_table_is_what_the_command_finds() -> None:
    assert neuron_table.committed() == neuron_table.table(), f"run {neuron_table.COMMAND}"


@pytest.mark.parametrize("neuron", neuron_table.LAYERS)
def test_a_mark_is_earned(neuron: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A threshold, or leak, that is off by a millionth takes it away."""
    layer = neuron_table.LAYERS[neuron]
    make = neuron_table.make

    def wrong(layer: type, backend: str, *args: object) -> object:
        made = make(layer, backend, *args)  # type: ignore[arg-type]
        learnt = made.glif.leak if neuron == "glif" else made.threshold
        if backend == "cpu":
            with torch.no_grad():
                learnt += 1e-6
        return made

    assert neuron_table.directions(layer, "cpu") == "forward, backward"
    monkeypatch.setattr(neuron_table, "make", wrong)
    assert neuron_table.directions(layer, "cpu") == "no"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("neuron", neuron_table.LAYERS)
def test_on_cuda(neuron: str) -> None:
    layer = neuron_table.LAYERS[neuron]
    assert neuron_table.directions(layer, "cuda") == "forward, backward"
    assert neuron_table.mixed(layer, "cuda") == "bfloat16, float16"
