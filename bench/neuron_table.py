"""``python -m bench.neuron_table``: writes the table of docs/neurons.md, what of each neuron works where.

Nothing in it is written by hand. A layer of every neuron runs forward and backward on small inputs, on the CPU kernels
and on the CUDA kernels under emulation (tests/cuda_emulation), and gets a mark where the reference agrees.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stc_cuda import backend_names, cells
from stc_cuda.config import SURROGATE_ALPHA
from stc_cuda.neurons import NEURONS, ElementwiseLayer, NeuronLayer

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "neurons.md"
COMMAND = "python -m bench.neuron_table"
BEGIN, END = "<!-- table -->\n", "<!-- end of the table -->\n"
EMULATED = "cuda_emulated"

STEPS, SAMPLES, INPUTS, CHANNELS, SIDE, KERNEL, GROUPS = 3, 2, 3, 4, 3, 3, 2
EXACT = 1e-10  # of float64 gradients, in the L2 norm, as docs/numerics.md has it
ROUNDED = {torch.bfloat16: 8 * 2.0**-8, torch.float16: 8 * 2.0**-11}  # some roundings of the convolutions' gradients
THRESHOLD = 0.5  # low enough for every neuron to fire

_TEXT = """
Written by `{command}`. A test compares it with what the command finds.

| neuron | CPU | CUDA, emulated | CUDA | AMP | surrogates | its own parameters |
|---|---|---|---|---|---|---|
{rows}
- CPU, CUDA emulated: what agrees with the reference in float64, for a layer of {channels} channels over {steps} steps
  (spikes identical; gradients of the input and of all parameters, the threshold included, within {exact:.0e}).
  Emulated are the sources of the CUDA kernels, on the CPU. Circuits in float64 run on the general kernels; the tests
  hold the persistent ones to the same reference.
- CUDA: `compiled` where those sources are the ones that csrc/sources.txt gives to nvcc. {gpu}
- AMP: `bfloat16` under `torch.autocast`, `float16` for a layer and an input of that dtype; state float32, spikes of the
  current's dtype, the same spikes and gradients as the reference but for their rounding.
- surrogates: how many of the {surrogates} of `stc_cuda.Surrogate` do so on the CPU, or which.
- its own parameters: those beside the convolutions and norms, by their names in a checkpoint, C = channels; with two
  shapes, the second is that of `per_channel=True`. Those in brackets get no gradient.

"""
_NOT_RUN = "No GPU has run them:\n  bench/results/gpu_check.json, which bench/gpu_check.sh writes on one, is not there."
_RUN = "What a GPU made of\n  them is in bench/results/gpu_check.json."


class IntegrateFire(ElementwiseLayer):
    """The ninth cell, which has a function and no layer of its own."""

    cell = cells.INTEGRATE_FIRE


LAYERS: dict[str, type[NeuronLayer]] = {"integrate_fire": IntegrateFire, **NEURONS}


class DisagreementError(AssertionError):
    pass


def require(holds: bool, what: str) -> None:
    if not holds:
        raise DisagreementError(what)


def make(
    layer: type[NeuronLayer], backend: str, dtype: torch.dtype, device: torch.device, surrogate: str | None = None
) -> NeuronLayer:
    """A layer whose parameters are all away from their initial values; the same on every backend."""
    options: dict[str, Any] = {"backend": backend, "v_threshold": THRESHOLD, "learn_threshold": True}
    options["per_channel"] = layer is NEURONS["glif"]  # which insists on it
    if surrogate is not None:
        options["surrogate_function"] = surrogate
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        made = layer(INPUTS, CHANNELS, KERNEL, GROUPS, **options)
        for parameter in made.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    return made.to(device, dtype)


def outside_of_autocast(layer: NeuronLayer) -> NeuronLayer:
    """Its neuron; the current still comes from inside. The kernels know no autocast, PyTorch's convolutions do."""
    inside = layer._run

    def run(*arguments: Any) -> tuple[Tensor, ...]:
        with torch.autocast(next(layer.parameters()).device.type, enabled=False):
            return inside(*arguments)

    layer._run = run  # type: ignore[method-assign]
    return layer


def run(
    layer: NeuronLayer, backward: bool, autocast: torch.dtype | None = None
) -> tuple[list[Tensor], dict[str, Tensor | None]]:
    """Spikes and membrane potential; gradients by name, with that of the input."""
    generator = torch.Generator().manual_seed(2)
    weight = next(layer.parameters())
    x = torch.randn(STEPS, SAMPLES, INPUTS, SIDE, SIDE, generator=generator).to(weight).requires_grad_(backward)
    context: AbstractContextManager[object] = (
        nullcontext() if autocast is None else torch.autocast(weight.device.type, autocast)
    )
    with context:
        spikes = layer(x)
    assert layer.v is not None
    outputs = [spikes, layer.v]
    if not backward:
        return outputs, {}
    loss = sum((y.double() * torch.randn(y.shape, generator=generator).to(y.device)).sum() for y in outputs)
    assert isinstance(loss, Tensor)
    loss.backward()
    return outputs, {"input": x.grad, **{name: parameter.grad for name, parameter in layer.named_parameters()}}


def compare(
    layer: type[NeuronLayer],
    backend: str,
    *,
    backward: bool,
    dtype: torch.dtype = torch.float64,
    autocast: torch.dtype | None = None,
    surrogate: str | None = None,
) -> None:
    """Raises DisagreementError where the backend and the reference do not give the same."""
    device = torch.device("cuda" if backend == "cuda" else "cpu")
    tolerance = EXACT if dtype == torch.float64 else ROUNDED[autocast or dtype]
    found, found_grads = run(make(layer, backend, dtype, device, surrogate), backward, autocast)
    reference = outside_of_autocast(make(layer, "reference", dtype, device, surrogate))
    expected, expected_grads = run(reference, backward, autocast)
    for x, y in zip(found, expected, strict=True):
        require(x.dtype == y.dtype, f"dtype: got {x.dtype}, expected {y.dtype}")
    require(torch.equal(found[0], expected[0]), "spikes")
    require(0 < found[0].mean() < 1, "spikes: got none, or nothing else")
    require(distance(found[1], expected[1]) < tolerance, "membrane potential")
    for name, gradient in expected_grads.items():
        mine = found_grads[name]
        require((mine is None) == (gradient is None), f"gradient of {name}: got {mine}, expected {gradient}")
        if mine is not None and gradient is not None:
            require(distance(mine, gradient) < tolerance, f"gradient of {name}: off by {distance(mine, gradient):.1e}")


def distance(x: Tensor, y: Tensor) -> float:
    x, y = x.detach().double(), y.detach().double()
    return float((x - y).norm() / y.norm().clamp(min=1e-30))


def listing(names: Iterable[str]) -> str:
    return ", ".join(names) or "no"


def works(test: Callable[[], None]) -> bool:
    """Whether a call is implemented and right. Anything else that goes wrong is an error of this command."""
    try:
        test()
    except (DisagreementError, NotImplementedError):
        return False
    return True


def directions(layer: type[NeuronLayer], backend: str) -> str:
    return listing(
        name
        for name, backward in (("forward", False), ("backward", True))
        if works(functools.partial(compare, layer, backend, backward=backward))
    )


def mixed(layer: type[NeuronLayer], backend: str = "cpu") -> str:
    def under_autocast() -> None:
        compare(layer, backend, backward=True, dtype=torch.float32, autocast=torch.bfloat16)

    def half() -> None:
        compare(layer, backend, backward=True, dtype=torch.float16)

    return listing(name for name, test in (("bfloat16", under_autocast), ("float16", half)) if works(test))


def surrogates(layer: type[NeuronLayer], backend: str = "cpu") -> str:
    names = [
        name
        for name in SURROGATE_ALPHA
        if works(functools.partial(compare, layer, backend, backward=True, surrogate=name))
    ]
    return f"all {len(names)}" if len(names) == len(SURROGATE_ALPHA) else listing(names)


def parameters(layer: type[NeuronLayer]) -> str:
    def own(per_channel: bool) -> dict[str, tuple[str, bool]]:
        made = layer(INPUTS, CHANNELS, KERNEL, GROUPS, per_channel=per_channel or layer is NEURONS["glif"])
        return {
            name: (str(["C" if size == CHANNELS else size for size in parameter.shape]).replace("'", ""), learns)
            for name, parameter in made.named_parameters()
            for learns in (parameter.requires_grad,)
            if not name.startswith("conv_")
        }

    shared, channelwise = own(False), own(True)
    by_shape: dict[tuple[str, bool], list[str]] = {}
    for name, (shape, learns) in shared.items():
        shapes = [shape, *([channelwise[name][0]] if channelwise[name][0] != shape else [])]
        by_shape.setdefault((" or ".join(shapes), learns), []).append(f"`{name}`")
    return (
        "; ".join(
            f"{', '.join(names)} {shape}" if learns else f"({', '.join(names)} {shape})"
            for (shape, learns), names in by_shape.items()
        )
        or "none"
    )


def compiled(emulated: str) -> str:
    """What nvcc gets: the emulation compiles every .cu file there is, csrc/sources.txt lists those of a build."""
    lines = (ROOT / "csrc" / "sources.txt").read_text().splitlines()
    listed = {line.split()[1] for line in lines if line.startswith("cuda ") and line.endswith(".cu")}
    there = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc" / "cuda").glob("*.cu")}
    return "compiled" if emulated != "no" and listed == there else "no"


def table() -> str:
    """What stands between the markers of the document."""
    if EMULATED not in backend_names():
        sys.path.insert(0, str(ROOT / "tests"))
        importlib.import_module("cuda_emulation")  # registers it
    rows = ""
    for name, layer in LAYERS.items():
        emulated = directions(layer, EMULATED)
        marks = (directions(layer, "cpu"), emulated, compiled(emulated), mixed(layer), surrogates(layer))
        rows += f"| `{name}` | {' | '.join(marks)} | {parameters(layer)} |\n"
    ran = (ROOT / "bench" / "results" / "gpu_check.json").exists()
    return _TEXT.format(
        command=COMMAND,
        rows=rows,
        channels=CHANNELS,
        steps=STEPS,
        exact=EXACT,
        surrogates=len(SURROGATE_ALPHA),
        gpu=_RUN if ran else _NOT_RUN,
    )


def committed() -> str:
    """What stands there now."""
    return DOCUMENT.read_text().split(BEGIN)[1].split(END)[0]


def main() -> None:
    before, rest = DOCUMENT.read_text().split(BEGIN)
    after = rest.split(END)[1]
    part = DOCUMENT.with_suffix(".part")
    part.write_text(before + BEGIN + table() + END + after)
    part.replace(DOCUMENT)


if __name__ == "__main__":
    main()
