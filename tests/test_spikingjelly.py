"""Against SpikingJelly's own nodes, and with its objects. Skipped where it is not installed."""

from __future__ import annotations

import importlib.util
import itertools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracle import error, size
from torch import Tensor

import stc_cuda
from stc_cuda.models import SpikingPredictor
from stc_cuda.neurons import NEURONS

if importlib.util.find_spec("spikingjelly") is None:  # one that is there and cannot be imported is an error
    pytest.skip("needs SpikingJelly", allow_module_level=True)
from spikingjelly.activation_based import functional, surrogate
from spikingjelly.activation_based.neuron import IFNode, LIFNode, ParametricLIFNode

Make = Callable[..., Any]
# SpikingJelly's node, ours, and the options of the neuron itself.
NODES: dict[str, tuple[Make, Callable[..., tuple[Tensor, ...]], dict[str, Any]]] = {
    "integrate_fire": (IFNode, stc_cuda.integrate_fire, {}),
    **{
        f"lif, tau {tau}, {'decayed' if decay_input else 'plain'} input": (
            LIFNode,
            stc_cuda.lif,
            {"tau": tau, "decay_input": decay_input},
        )
        for tau, decay_input in itertools.product((1.5, 2.0, 8.0), (True, False))
    },
    "plif": (ParametricLIFNode, stc_cuda.plif, {"init_tau": 2.0}),
    "plif, tau 5": (ParametricLIFNode, stc_cuda.plif, {"init_tau": 5.0}),
}
RESETS = [None, 0.0, -0.25]


def make_current(dtype: torch.dtype, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return (torch.randn(6, 3, 4, 5, 6, generator=rng) + 0.7).to(dtype).requires_grad_()


def run_both(
    name: str, current: Tensor, v_reset: float | None, **options: Any
) -> list[tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]]:
    """Of SpikingJelly and of us: spikes, v, v_seq, and gradients for the current and the learnt decay.

    Its nodes start at the reset potential, ours at 0 unless told otherwise.
    """
    make, ours, own = NODES[name]
    shared = {"v_threshold": 0.3, "v_reset": v_reset, "store_v_seq": True, **options}
    start = torch.full_like(current[0], v_reset or 0.0)
    renamed = {"surrogate_function" if k == "surrogate" else k: x for k, x in shared.items()}
    node = make(step_mode="m", **own, **renamed).to(current.dtype)
    upstream = torch.randn(current.shape, generator=torch.Generator().manual_seed(1)).to(current.dtype)

    def with_gradients(spikes: Tensor, v: Tensor, v_seq: Tensor, leaves: list[Tensor]) -> Any:
        loss = (spikes * upstream).sum() + v.sin().sum() + (v_seq * upstream).sum()
        return spikes.detach(), v.detach(), v_seq.detach(), list(torch.autograd.grad(loss, leaves))

    spikes = node(current)
    theirs = with_gradients(spikes, node.v, node.v_seq, [current, *node.parameters()])
    if "init_tau" in own:
        logit = (-node.w.detach()).reshape(1).requires_grad_()
        found = with_gradients(*ours(current, logit, textbook=True, v=start, **shared), [current, logit])
        found[-1][1] = -found[-1][1].reshape(())  # for w, of the other sign
    else:
        found = with_gradients(*ours(current, v=start, **own, **shared), [current])
    return [theirs, found]


@pytest.mark.parametrize("name", NODES)
@pytest.mark.parametrize("v_reset", RESETS)
@pytest.mark.parametrize("detach_reset", [False, True])
def test_nodes_in_double_precision(name: str, v_reset: float | None, detach_reset: bool) -> None:
    theirs, ours = run_both(name, make_current(torch.float64), v_reset=v_reset, detach_reset=detach_reset)
    assert 0.02 < theirs[0].mean() < 0.98
    assert torch.equal(ours[0], theirs[0])
    for found, expected in zip((*ours[1:3], *ours[3]), (*theirs[1:3], *theirs[3]), strict=True):
        assert error(found, expected) <= 1e-10 * size(expected)


@pytest.mark.parametrize("name", NODES)
@pytest.mark.parametrize("v_reset", RESETS)
@pytest.mark.parametrize("detach_reset", [False, True])
def test_nodes_in_single_precision(name: str, v_reset: float | None, detach_reset: bool) -> None:
    """With this seed no potential comes so near the threshold that the order of a sum decides; nothing else is chosen.

    Integrate-and-fire has one sum, and every seed would do.
    """
    theirs, ours = run_both(name, make_current(torch.float32), v_reset=v_reset, detach_reset=detach_reset)
    assert torch.equal(ours[0], theirs[0])
    for found, expected in zip((*ours[1:3], *ours[3]), (*theirs[1:3], *theirs[3]), strict=True):
        assert error(found, expected) <= 1e-6 * size(expected)


def test_a_sequence_of_single_steps() -> None:
    node = LIFNode(tau=3.0, v_reset=None)
    current = make_current(torch.float32)
    v = None
    for x in current.detach():
        spikes, v = stc_cuda.lif(x[None], tau=3.0, v=v)
        assert torch.equal(spikes[0], node(x))
    torch.testing.assert_close(v, node.v)


# --- its surrogates -------------------------------------------------------------------------------------------------

KNOWN = ["Sigmoid", "ATan", "PiecewiseQuadratic", "PiecewiseExp", "SoftSign", "SuperSpike", "Erf", "Rect"]


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("alpha", [None, 1.7])
@pytest.mark.parametrize("spiking", [True, False])
def test_surrogate_objects(name: str, alpha: float | None, spiking: bool) -> None:
    if name == "SuperSpike" and not spiking:
        pytest.skip("SpikingJelly has no primitive of it")
    options = {"spiking": spiking, **({} if alpha is None else {"alpha": alpha})}
    given = getattr(surrogate, name)(**options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it runs in the kernels
        theirs, ours = run_both("integrate_fire", make_current(torch.float64), v_reset=None, surrogate=given)
    assert error(ours[0], theirs[0]) <= 1e-12 * size(theirs[0])
    assert error(ours[3][0], theirs[3][0]) <= 1e-10 * size(theirs[3][0])


def test_surrogate_objects_in_layers() -> None:
    x = torch.randn(4, 2, 3, 6, 6, generator=torch.Generator().manual_seed(2))
    for neuron in NEURONS.values():
        torch.manual_seed(0)
        given = neuron(3, 8, groups=2, surrogate_function=surrogate.ATan(alpha=3.0), backend="cpu")
        torch.manual_seed(0)
        named = neuron(3, 8, groups=2, surrogate_function=stc_cuda.Surrogate("atan", 3.0), backend="cpu")
        for layer in (given, named):
            layer(x).mean().backward()
        assert torch.equal(given.conv_x[0].weight.grad, named.conv_x[0].weight.grad)


@pytest.mark.parametrize("name", ["LeakyKReLU", "S2NN"])
def test_a_surrogate_that_no_kernel_knows_runs_on_the_reference(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stc_cuda.backends, "_warned_of", set())
    given = getattr(surrogate, name)()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        theirs, ours = run_both("lif, tau 2.0, decayed input", make_current(torch.float64), 0.0, surrogate=given)
        run_both("lif, tau 8.0, plain input", make_current(torch.float64), None, surrogate=given)
        mine = [w for w in caught if "no kernel knows the surrogate" in str(w.message)]
    assert len(mine) == 1
    assert name in str(mine[0].message)
    assert torch.equal(ours[0], theirs[0])
    assert error(ours[3][0], theirs[3][0]) <= 1e-10 * size(theirs[3][0])


# --- its helpers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("neuron", NEURONS)
def test_reset_net_resets_layers_and_predictors(neuron: str) -> None:
    layer = NEURONS[neuron](3, 8, groups=2)
    net = torch.nn.Sequential(layer)
    x = torch.randn(2, 1, 3, 6, 6)
    first = net(x)
    assert layer.v is not None
    functional.reset_net(net)
    assert all(getattr(layer, name) is None for name in layer.state_names)
    assert torch.equal(net(x), first)

    model = SpikingPredictor(neuron, in_shape=(2, 1, 8, 8), out_frames=2, hidden=(8, 8), groups=2)
    cell = model.cell_list[0]
    cell(torch.randn(2, 1, 4, 4, 4))
    assert cell.v is not None
    functional.reset_net(model)
    assert cell.v is None
    assert model(torch.rand(1, 4, 1, 8, 8)).shape == (1, 3, 1, 8, 8)
