"""Bad input raises an exception that names the argument, what was given and what was expected; nothing crashes."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import oracle
import pytest
import torch
from oracle import Case, kernel, make_problem
from torch import Tensor

import stc_cuda

T, N, C, H, W, K, GROUPS = 3, 2, 6, 5, 4, 3, 2
CASE = Case(seed=41, steps=T, samples=N, groups=GROUPS, in_group=C // GROUPS, height=H, width=W, kernel=K)


def arguments() -> dict[str, object]:
    """A valid call of ``stc_lif``."""
    x = make_problem(CASE, torch.float32).inputs
    norms = {f"{n}_norm": (x[f"{n}_norm_weight"], x[f"{n}_norm_bias"]) for n in ("current", "temporal", "spatial")}
    plain = {name: x[name] for name in ("current", "temporal_weight", "spatial_weight", "v", "spikes")}
    return {**plain, **norms, "groups": GROUPS}


def call(backend: str, given: dict[str, object]) -> object:
    device = oracle.device_of(backend) if torch.cuda.is_available() else torch.device("cpu")

    def place(x: object) -> object:  # what lies elsewhere is meant to
        if isinstance(x, tuple):
            return tuple(map(place, x))
        return x.to(device) if isinstance(x, Tensor) and x.device.type == "cpu" else x

    given = {name: place(x) for name, x in given.items()}
    tensors = [given.pop(name) for name in ("current", "temporal_weight", "spatial_weight")]
    return kernel(backend)(*tensors, **given)  # type: ignore[arg-type]


def quantized(x: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)


ones = torch.ones
Replacement = object
# (argument, what replaces it: a value or a function of the valid one, exception, what the message must say)
TENSORS: list[tuple[str, Replacement, type[Exception], list[str]]] = [
    # Rank.
    ("current", lambda x: x[0], ValueError, ["4 dim", f"[{N}, {C}, {H}, {W}]", "expected 5", "[T, N, C, H, W]"]),
    ("current", lambda x: x[None], ValueError, ["6 dim", "expected 5"]),
    ("current", torch.tensor(1.0), ValueError, ["0 dim", "expected 5"]),
    ("temporal_weight", lambda x: x[0], ValueError, ["3 dim", "expected 4", "[C, C/groups, K, K]"]),
    ("spatial_weight", lambda x: x[..., 0], ValueError, [f"[{C}, 3, {K}]", f"[{C}, 3, {K}, {K}]"]),
    ("v", lambda x: x[0], ValueError, [f"[{C}, {H}, {W}]", f"[{N}, {C}, {H}, {W}]"]),
    ("spikes", lambda x: x[None], ValueError, [f"[1, {N}, {C}, {H}, {W}]", f"[{N}, {C}, {H}, {W}]"]),
    # Shapes that PyTorch would broadcast.
    ("v", lambda x: x[:1], ValueError, [f"[1, {C}, {H}, {W}]", f"[{N}, {C}, {H}, {W}]"]),
    ("v", lambda x: x[:, :1], ValueError, [f"[{N}, 1, {H}, {W}]", f"[{N}, {C}, {H}, {W}]"]),
    ("spikes", lambda x: x[..., :1], ValueError, [f"[{N}, {C}, {H}, 1]", f"[{N}, {C}, {H}, {W}]"]),
    ("spikes", torch.tensor(0.0), ValueError, ["[]", f"[{N}, {C}, {H}, {W}]"]),
    ("v", lambda x: x.transpose(2, 3), ValueError, [f"[{N}, {C}, {W}, {H}]", f"[{N}, {C}, {H}, {W}]"]),
    ("current_norm", (ones(1), ones(1)), ValueError, ["[1]", f"[{C}]"]),
    ("temporal_norm", (ones(C), ones(C + 1)), ValueError, [f"[{C + 1}]", f"[{C}]"]),
    ("spatial_norm", (ones(C, 1), ones(C)), ValueError, [f"[{C}, 1]", f"[{C}]"]),
    ("spatial_norm", (torch.tensor(1.0), ones(C)), ValueError, ["[]", f"[{C}]"]),
    # Channels, groups, kernel sizes.
    ("temporal_weight", ones(C, C, K, K), ValueError, [f"[{C}, {C}, {K}, {K}]", f"[{C}, 3, {K}, {K}]"]),
    ("spatial_weight", ones(C, C, K, K), ValueError, [f"[{C}, {C}, {K}, {K}]", f"[{C}, 3, {K}, {K}]"]),
    ("temporal_weight", ones(C + 2, 3, K, K), ValueError, [f"[{C + 2}, 3, {K}, {K}]", f"[{C}, 3, {K}, {K}]"]),
    ("temporal_weight", ones(C, 3, 4, 4), ValueError, ["kernel size 4", "odd"]),
    ("temporal_weight", ones(C, 3, 0, 0), ValueError, ["kernel size 0", "odd"]),
    ("temporal_weight", ones(C, 3, 5, 3), ValueError, [f"[{C}, 3, 5, 3]", "expected"]),
    ("spatial_weight", ones(C, 3, 5, 5), ValueError, [f"[{C}, 3, 5, 5]", f"[{C}, 3, {K}, {K}]"]),
    ("current", lambda x: x[:, :, :0], ValueError, [f"[{T}, {N}, 0, {H}, {W}]", "at least one channel"]),
    ("current", lambda x: x[..., :0], ValueError, [f"[{T}, {N}, {C}, {H}, 0]", "at least one"]),
    ("current", lambda x: x[..., :0, :], ValueError, [f"[{T}, {N}, {C}, 0, {W}]", "at least one"]),
    # Dtypes.
    ("current", lambda x: x.half(), TypeError, ["spikes", "float32", "float16, the dtype of current"]),
    ("current", lambda x: x.bfloat16(), TypeError, ["spikes", "float32", "bfloat16, the dtype of current"]),
    ("current", lambda x: x.to(torch.float8_e5m2), TypeError, ["float8_e5m2", "float16 or torch.bfloat16"]),
    ("v", lambda x: x.half(), TypeError, ["float16", "float32"]),
    ("current", lambda x: x.int(), TypeError, ["int32", "float32"]),
    ("current", lambda x: x.long(), TypeError, ["int64", "float32"]),
    ("current", lambda x: x > 0, TypeError, ["bool", "float32"]),
    ("current", lambda x: x.cfloat(), TypeError, ["complex64", "float32"]),
    ("current", lambda x: x.double(), TypeError, ["temporal_weight", "float32", "float64"]),
    ("temporal_weight", lambda x: x.double(), TypeError, ["float64", "float32"]),
    ("spatial_weight", lambda x: x.half(), TypeError, ["float16", "float32"]),
    ("v", lambda x: x.double(), TypeError, ["float64", "float32"]),
    ("spikes", lambda x: x.bool(), TypeError, ["bool", "float32"]),
    ("spikes", lambda x: x.byte(), TypeError, ["uint8", "float32"]),
    ("current_norm", (ones(C), ones(C).double()), TypeError, ["float64", "float32"]),
    ("spatial_norm", (ones(C).long(), ones(C)), TypeError, ["int64", "float32"]),
    # Layouts that no kernel reads.
    ("current", lambda x: x.to_sparse(), TypeError, ["torch.sparse_coo", "dense", ".to_dense()"]),
    ("temporal_weight", lambda x: x.to_sparse(), TypeError, ["torch.sparse_coo", "dense"]),
    ("v", lambda x: x.to_sparse(), TypeError, ["torch.sparse_coo", "dense"]),
    ("spikes", lambda x: x.to_sparse(), TypeError, ["torch.sparse_coo", "dense"]),
    ("temporal_norm", (ones(C).to_sparse(), ones(C)), TypeError, ["torch.sparse_coo", "dense"]),
    ("current", quantized, TypeError, ["quantized", "qint8", "dequantize"]),
    ("spatial_weight", quantized, TypeError, ["quantized", "qint8"]),
    ("v", quantized, TypeError, ["quantized", "qint8"]),
    # Devices.
    ("temporal_weight", lambda x: x.to("meta"), ValueError, ["meta", "cpu"]),
    ("spatial_weight", lambda x: x.to("meta"), ValueError, ["meta", "cpu"]),
    ("v", lambda x: x.to("meta"), ValueError, ["meta", "cpu"]),
    ("spikes", lambda x: x.to("meta"), ValueError, ["meta", "cpu"]),
    ("current_norm", (ones(C), ones(C, device="meta")), ValueError, ["meta", "cpu"]),
    ("current", lambda x: x.to("meta"), ValueError, ["temporal_weight", "meta", "cpu"]),
    # Not tensors.
    ("current", None, TypeError, ["NoneType", "tensor", "[T, N, C, H, W]"]),
    ("current", lambda x: x.numpy(), TypeError, ["ndarray", "tensor"]),
    ("current", lambda x: x.tolist(), TypeError, ["list", "tensor"]),
    ("current", 3.0, TypeError, ["float", "tensor"]),
    ("temporal_weight", None, TypeError, ["NoneType", "tensor", "[C, C/groups, K, K]"]),
    ("spatial_weight", None, TypeError, ["NoneType", "tensor"]),
    ("spatial_weight", lambda x: x.numpy(), TypeError, ["ndarray", "tensor"]),
    ("v", 0.0, TypeError, ["float", "tensor"]),
    ("v", lambda x: x.numpy(), TypeError, ["ndarray", "tensor"]),
    ("spikes", 0, TypeError, ["int", "tensor"]),
    ("spikes", lambda x: x.tolist(), TypeError, ["list", "tensor"]),
    # Norms.
    ("current_norm", ones(C), TypeError, ["Tensor", "pair"]),
    ("temporal_norm", (ones(C),), TypeError, ["length 1", "pair"]),
    ("spatial_norm", (ones(C), ones(C), ones(C)), TypeError, ["length 3", "pair"]),
    ("current_norm", torch.nn.GroupNorm(2, C), TypeError, ["GroupNorm", "pair"]),
    ("current_norm", (None, ones(C)), ValueError, ["weight", "both"]),
    ("temporal_norm", (ones(C), None), ValueError, ["bias", "both"]),
    ("spatial_norm", (1.0, 0.0), TypeError, ["float", "tensor"]),
    ("spatial_norm", (ones(C), np.ones(C, dtype=np.float32)), TypeError, ["ndarray", "tensor"]),
    # Initial spikes.
    ("spikes", lambda x: x * 0.5 + 0.1, ValueError, ["0 and 1", "spiking=False"]),
    ("spikes", lambda x: -x - 1, ValueError, ["0 and 1"]),
    ("spikes", lambda x: x * float("nan"), ValueError, ["0 and 1"]),
]

OPTIONS: list[tuple[str, object, type[Exception], list[str]]] = [
    ("groups", 4, ValueError, ["got 4", "divisor", "6 channels"]),
    ("groups", 0, ValueError, ["got 0", "at least 1"]),
    ("groups", -2, ValueError, ["got -2", "at least 1"]),
    ("groups", 2.0, TypeError, ["float", "int"]),
    ("groups", True, TypeError, ["bool", "int"]),
    ("groups", "2", TypeError, ["str", "int"]),
    ("groups", None, TypeError, ["NoneType", "int"]),
    ("norm_groups", 5, ValueError, ["got 5", "divisor", "6 channels"]),
    ("norm_groups", 0, ValueError, ["got 0", "at least 1"]),
    ("norm_groups", -1, ValueError, ["got -1", "at least 1"]),
    ("norm_groups", 1.5, TypeError, ["float", "int"]),
    ("eps", -1e-5, ValueError, ["-1e-05", "0 or more"]),
    ("eps", float("nan"), ValueError, ["nan", "finite"]),
    ("eps", "1e-5", TypeError, ["str", "number"]),
    ("v_threshold", float("nan"), ValueError, ["nan", "finite"]),
    ("v_threshold", float("inf"), ValueError, ["inf", "finite"]),
    ("v_threshold", float("-inf"), ValueError, ["-inf", "finite"]),
    ("v_threshold", None, TypeError, ["NoneType", "number"]),
    ("v_threshold", ones(2), ValueError, ["v_threshold", "[2]", f"[{C}]", "[1]"]),
    ("v_threshold", torch.tensor(1.0), ValueError, ["v_threshold", "[]", f"[{C}]"]),
    ("v_threshold", ones(C).double(), TypeError, ["v_threshold", "float64", "float32"]),
    ("v_threshold", ones(C).long(), TypeError, ["v_threshold", "int64", "float32"]),
    ("v_threshold", ones(C, device="meta"), ValueError, ["v_threshold", "meta", "cpu"]),
    ("v_threshold", True, TypeError, ["bool", "number"]),
    ("v_reset", float("nan"), ValueError, ["nan", "finite"]),
    ("v_reset", float("inf"), ValueError, ["inf", "finite"]),
    ("v_reset", "soft", TypeError, ["str", "number"]),
    ("v_reset", False, TypeError, ["bool", "number"]),
    ("surrogate", "relu", ValueError, ["'relu'", "'sigmoid'", "'atan'"]),
    ("surrogate", None, ValueError, ["None", "'sigmoid'", "function"]),
    ("surrogate", 4.0, ValueError, ["4.0", "'sigmoid'", "function"]),
    ("alpha", -1.0, ValueError, ["-1.0", "above 0"]),
    ("alpha", 0, ValueError, ["got 0", "above 0"]),
    ("alpha", float("nan"), ValueError, ["nan", "finite"]),
    ("alpha", float("inf"), ValueError, ["inf", "finite"]),
    ("alpha", "4", TypeError, ["str", "number"]),
    *(
        (flag, 1, TypeError, ["int", "True or False"])
        for flag in ("gradient_detach", "detach_reset", "spiking", "store_v_seq", "packed_spikes")
    ),
    *(
        (flag, None, TypeError, ["NoneType", "True or False"])
        for flag in ("gradient_detach", "detach_reset", "spiking", "store_v_seq", "packed_spikes")
    ),
    ("spiking", "False", TypeError, ["str", "True or False"]),
    ("gradient_detach", torch.tensor(True), TypeError, ["Tensor", "True or False"]),
]


def check_message(caught: pytest.ExceptionInfo[Exception], parts: list[str], backend: str) -> None:
    message = str(caught.value)
    for part in parts:
        if part == "cpu":  # stands for where the other tensors are
            part = oracle.device_of(backend).type
        assert part in message, f"{part!r} is not in {message!r}"
    assert "got" in message or "backend" in message, message


def name_case(value: object) -> str:
    return value if isinstance(value, str) else ""


def test_the_valid_call_is_valid(any_backend: str) -> None:
    """Guards the whole file: what every case below starts from passes."""
    spikes, v = call(any_backend, arguments())  # type: ignore[misc]
    assert spikes.shape == (T, N, C, H, W)
    assert v.shape == (N, C, H, W)


@pytest.mark.parametrize(
    ("name", "replacement", "exception", "parts"), TENSORS, ids=[f"{t[0]} {t[3]}" for t in TENSORS]
)
def test_tensors(
    any_backend: str, name: str, replacement: Replacement, exception: type[Exception], parts: list[str]
) -> None:
    given = arguments()
    is_function = callable(replacement) and not isinstance(replacement, torch.nn.Module)
    given[name] = replacement(given[name]) if is_function else replacement  # type: ignore[operator]
    with pytest.raises(exception) as caught:
        call(any_backend, given)
    # Where two arguments disagree the message may name the other one first.
    blamed = parts[0] if parts[0] in given else name
    check_message(caught, [blamed, *parts], any_backend)


@pytest.mark.parametrize(("name", "value", "exception", "parts"), OPTIONS, ids=[f"{o[0]} {o[3]}" for o in OPTIONS])
def test_options(any_backend: str, name: str, value: object, exception: type[Exception], parts: list[str]) -> None:
    with pytest.raises(exception) as caught:
        call(any_backend, {**arguments(), name: value})
    check_message(caught, [name, *parts], any_backend)
    assert str(caught.value).startswith(name)


def test_options_that_exclude_each_other(any_backend: str) -> None:
    with pytest.raises(ValueError, match=r"packed_spikes: got True with spiking=False"):
        call(any_backend, {**arguments(), "spiking": False, "packed_spikes": True})


def test_unknown_backend() -> None:
    with pytest.raises(ValueError, match=r"backend: got 'gpu', expected one of 'auto', .*'cpu'.*'reference'"):
        call("gpu", arguments())
    with pytest.raises(TypeError, match=r"backend: got NoneType"):
        call(None, arguments())  # type: ignore[arg-type]


def test_a_device_without_kernels_is_refused_and_not_run_slowly() -> None:
    given = {name: x.to("meta") for name, x in arguments().items() if isinstance(x, Tensor)}
    with pytest.raises((NotImplementedError, ValueError), match=r"backend: .*meta"):
        call("auto", {**given, "groups": GROUPS})
    with pytest.raises(ValueError, match=r"backend: .*cpu.*meta"):
        call("cpu", {**given, "groups": GROUPS})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there the name is known")
def test_cuda_on_a_machine_without_a_gpu() -> None:
    with pytest.raises((NotImplementedError, ValueError), match=r"backend: .*cuda"):
        call("cuda", arguments())


def test_unknown_keyword() -> None:
    with pytest.raises(TypeError, match="threshold"):
        call("cpu", {**arguments(), "threshold": 1.0})


@pytest.mark.parametrize("value", [0.5, float("nan"), -1.0, 2.0, 1e-30])
def test_one_initial_spike_that_is_no_spike(any_backend: str, value: float) -> None:
    """One wrong element, anywhere in the map and in any group, sample or position of a vector register."""
    for place in ((0, 0, 0, 0), (N - 1, C - 1, H - 1, W - 1), (0, C // 2, 2, 1)):
        given = arguments()
        given["spikes"][place] = value  # type: ignore[index]
        with pytest.raises(ValueError, match=r"spikes: .*0 and 1") as caught:
            call(any_backend, given)
        assert "spiking=False" in str(caught.value)
    given = arguments()
    given["spikes"][0, 0, 0, 0] = 0.5  # type: ignore[index]
    call(any_backend, {**given, "spiking": False})  # where a soft spike is what the model makes


def test_a_bad_gradient_does_not_reach_memory() -> None:
    """Autograd itself checks gradients given by hand."""
    given = arguments()
    given["current"].requires_grad_()  # type: ignore[attr-defined]
    spikes, _ = call("cpu", given)  # type: ignore[misc]
    with pytest.raises(RuntimeError, match="shape"):
        spikes.backward(torch.ones(T, N, C, H, W + 1))


def test_function_apply_checks_as_well() -> None:
    x = make_problem(CASE, torch.float32).inputs
    norms = [x[f"{n}_norm_{p}"] for n in ("current", "temporal", "spatial") for p in ("weight", "bias")]
    config = stc_cuda.STCConfig(groups=GROUPS)

    def apply(*, current: object, config: object) -> object:
        return stc_cuda.STCFunction.apply(
            current, x["temporal_weight"], x["spatial_weight"], x["v"], x["spikes"], *norms, config
        )

    apply(current=x["current"], config=config)
    with pytest.raises(ValueError, match=r"current: got 4 dimensions"):
        apply(current=x["current"][0], config=config)  # type: ignore[index]
    with pytest.raises(TypeError, match=r"current: got NoneType"):
        apply(current=None, config=config)
    with pytest.raises(TypeError, match=r"config: got dict, expected a stc_cuda\.STCConfig"):
        apply(current=x["current"], config={"groups": GROUPS})
    norms[1] = None
    with pytest.raises(ValueError, match=r"current_norm: got no bias"):
        apply(current=x["current"], config=config)


def test_unpack_spikes() -> None:
    bits = torch.zeros(2, 3, 4, 5, 6, 2, dtype=torch.uint8)
    assert stc_cuda.unpack_spikes(bits, 64).shape == (2, 3, 64, 5, 6)
    with pytest.raises(TypeError, match=r"packed: got dtype torch\.int64, expected torch\.uint8"):
        stc_cuda.unpack_spikes(bits.long(), 64)
    for channels in (63, 4, 100, 0, -4):
        with pytest.raises(ValueError, match=r"(packed|channels): got .*expected"):
            stc_cuda.unpack_spikes(bits, channels)
    with pytest.raises(ValueError, match=r"packed: got shape \[5, 6, 2\]"):
        stc_cuda.unpack_spikes(bits[0, 0, 0], 64)


# --- the other neurons ----------------------------------------------------------------------------------------------

X, ROW = torch.zeros(T, N, C, H), torch.zeros(C)
LMH = dict.fromkeys(oracle.LMH, ROW)
GLIF = dict.fromkeys(oracle.NEURONS["glif"].parameters, ROW)
TCLIF = {"soma_to_dendrite": ROW, "dendrite_to_soma": ROW, "reset_gain": ROW}
NEURONS: list[tuple[str, dict[str, object], dict[str, object], type[Exception], str]] = [
    ("lif", {}, {"current": None}, TypeError, r"current: got NoneType, expected a tensor \[T, N, \*\]"),
    ("lif", {}, {"current": torch.zeros(3)}, ValueError, r"current: got shape \[3\], expected at least 2 dimensions"),
    ("lif", {}, {"current": X.int()}, TypeError, r"current: got dtype torch.int32"),
    ("lif", {}, {"current": X.to_sparse()}, TypeError, r"current: got a tensor of layout torch.sparse_coo"),
    ("lif", {}, {"v": X}, ValueError, r"v: got shape .* expected \[2, 6, 5\] = \[N, \*\]"),
    ("lif", {}, {"v": X[0].double()}, TypeError, r"v: got dtype torch.float64, expected torch.float32"),
    ("lif", {}, {"tau": 0.0}, ValueError, r"tau: got 0.0, expected a finite time constant above 0"),
    ("lif", {}, {"tau": float("nan")}, ValueError, r"tau: got nan"),
    ("lif", {}, {"tau": float("inf")}, ValueError, r"tau: got inf"),
    ("lif", {}, {"tau": ROW}, TypeError, r"tau: got Tensor, expected a number .*plif"),
    ("lif", {}, {"decay_input": 1}, TypeError, r"decay_input: got int"),
    ("lif", {}, {"v_reset": "soft"}, TypeError, r"v_reset: got str"),
    ("lif", {}, {"v_threshold": ROW[:2]}, ValueError, r"v_threshold: got shape \[2\], expected \[6\]"),
    ("integrate_fire", {}, {"alpha": -1.0}, ValueError, r"alpha: got -1.0"),
    ("integrate_fire", {}, {"surrogate": "relu"}, ValueError, r"surrogate: got 'relu', expected one of"),
    ("plif", {"decay_logit": ROW}, {"decay_logit": 0.5}, TypeError, r"decay_logit: got float, expected a tensor"),
    ("plif", {"decay_logit": ROW}, {"decay_logit": ROW[:2]}, ValueError, r"decay_logit: got shape \[2\]"),
    ("plif", {"decay_logit": ROW}, {"decay_logit": ROW.double()}, TypeError, r"decay_logit: got dtype torch.float64"),
    ("plif", {"decay_logit": ROW}, {"textbook": None}, TypeError, r"textbook: got NoneType"),
    ("lmh", LMH, {"soma_decay": ROW[None]}, ValueError, r"soma_decay: got shape \[1, 6\], expected \[6\]"),
    ("lmh", LMH, {"dendrite": X[0, :1]}, ValueError, r"dendrite: got shape \[1, 6, 5\]"),
    ("lmh", LMH, {"dendrite_decay": None}, TypeError, r"dendrite_decay: got NoneType"),
    ("tclif", TCLIF, {"spikes": X[0] + 0.5}, ValueError, r"spikes: got values other than 0 and 1"),
    ("tclif", TCLIF, {"spikes": X[0].bool()}, TypeError, r"spikes: got dtype torch.bool"),
    ("tclif", TCLIF, {"reset_gain": ROW.to("meta")}, ValueError, r"reset_gain: got device meta, expected cpu"),
    ("tclif", TCLIF, {"v_reset": 0.0}, TypeError, r"v_reset"),
    ("glif", GLIF, {"leak": ROW[:0]}, ValueError, r"leak: got shape \[0\]"),
    ("glif", GLIF, {"v_threshold": 1.0}, TypeError, r"v_threshold"),
    (
        "scan",
        {"neuron": "lif", "states": {"v": None}, "coefficients": (0.5, 0.5)},
        {"neuron": "izhikevich"},
        ValueError,
        r"neuron: got 'izhikevich'|izhikevich",
    ),
    (
        "scan",
        {"neuron": "lif", "states": {"v": None}, "coefficients": (0.5, 0.5)},
        {"coefficients": (0.5,)},
        ValueError,
        r"coefficients: ",
    ),
    (
        "scan",
        {"neuron": "lif", "states": {"v": None}, "coefficients": (0.5, 0.5)},
        {"states": {}},
        ValueError,
        r"states: got none, expected v in this order",
    ),
    (
        "scan",
        {"neuron": "lif", "states": {"v": None}, "coefficients": (0.5, 0.5)},
        {"backend": "reference"},
        ValueError,
        r"backend: got 'reference', expected what kernels can run.*call stc_cuda\.lif for it",
    ),
    (
        "scan",
        {"neuron": "lif", "states": {"v": None}, "coefficients": (0.5, 0.5)},
        {"surrogate": torch.sigmoid},
        ValueError,
        r"surrogate: got a function, expected what kernels can run.*call stc_cuda\.lif for it",
    ),
    ("lif", {}, {"tau": 1e-300}, ValueError, r"tau: got 1e-300, expected a finite time constant"),
    ("lif", {}, {"alpha": 1e39}, ValueError, r"alpha: got 1e\+39, expected a finite number, of float32's range"),
    ("lif", {}, {"v_threshold": -1e39}, ValueError, r"v_threshold: got -1e\+39, expected a finite number"),
]


@pytest.mark.parametrize(("neuron", "given", "changes", "error", "match"), NEURONS, ids=name_case)
def test_other_neurons(
    neuron: str, given: dict[str, object], changes: dict[str, object], error: type[Exception], match: str
) -> None:
    function = getattr(stc_cuda, neuron)
    function(**{"current": X, **given})
    with pytest.raises(error, match=match):
        function(**{"current": X, **given, **changes})


@pytest.mark.parametrize("neuron", ["stc_plif", "stc_lmh"])
@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda x: x[:2], ValueError, r"got shape \[2\], expected \[6\] = \[C\], or \[1\]"),
        (lambda x: x.double(), TypeError, "got dtype torch.float64"),
        (lambda x: None, TypeError, "got NoneType"),
        (lambda x: x.to("meta"), ValueError, "got device meta"),
    ],
)
def test_parameters_of_circuits(
    neuron: str, change: Callable[[Tensor], object], error: type[Exception], match: str
) -> None:
    names = oracle.NEURONS[neuron].parameters
    good = {**arguments(), **dict.fromkeys(names, ROW)}
    getattr(stc_cuda, neuron)(**good)
    for name in names:
        with pytest.raises(error, match=f"{name}: {match}"):
            getattr(stc_cuda, neuron)(**{**good, name: change(ROW)})


# --- modules --------------------------------------------------------------------------------------------------------

MODULES: list[tuple[dict[str, object], type[Exception], str]] = [
    ({"kernel_size": 4}, ValueError, r"kernel_size: got 4, expected an odd"),
    ({"kernel_size": 0}, ValueError, r"kernel_size: got 0"),
    ({"kernel_size": 3.0}, (ValueError, TypeError), r"kernel_size: got 3\.0"),
    ({"kernel_size": (3, 3)}, (ValueError, TypeError), r"kernel_size: got \(3, 3\)"),
    ({"channels": 7}, ValueError, r"channels: got 7, expected a multiple of groups = 2"),
    ({"channels": 0}, ValueError, r"channels: got 0"),
    ({"in_channels": -1}, ValueError, r"in_channels: got -1"),
    ({"in_channels": True}, (ValueError, TypeError), r"in_channels: got True"),
    ({"groups": 0}, ValueError, r"groups: got 0"),
    ({"groups": 1.0}, TypeError, r"groups: got float"),
    ({"v_threshold": float("nan")}, ValueError, r"v_threshold: got nan"),
    ({"v_reset": float("inf")}, ValueError, r"v_reset: got inf"),
    ({"step_mode": "x"}, ValueError, r"step_mode: got 'x', expected 's' .* or 'm'"),
    ({"surrogate_function": "relu"}, ValueError, r"surrogate_function: got 'relu', expected one of 'sigmoid', 'atan'"),
    ({"surrogate_function": object()}, ValueError, r"surrogate_function: got .*expected one of"),
    ({"surrogate_function": stc_cuda.surrogate.Surrogate(alpha=-1.0)}, ValueError, r"alpha: got -1\.0"),
    ({"gradient_detach": 1}, TypeError, r"gradient_detach: got int"),
    ({"detach_reset": 1}, TypeError, r"detach_reset: got int"),
    ({"backend": 3}, TypeError, r"backend: got int"),
]


@pytest.mark.parametrize(("changes", "exception", "match"), MODULES, ids=[m[2][:30] for m in MODULES])
def test_module_options(changes: dict[str, object], exception: type[Exception], match: str) -> None:
    plain: dict[str, object] = {"in_channels": 3, "channels": 4, "kernel_size": 3, "groups": 2}
    stc_cuda.STCLIF(**plain)  # type: ignore[arg-type]
    with pytest.raises(exception, match=match):
        stc_cuda.STCLIF(**{**plain, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("step_mode", "x", "match"),
    [
        ("m", torch.zeros(2, 3, 4, 4), r"x: got .*\[2, 3, 4, 4\].*expected.*\[T, N, C, H, W\]"),
        ("s", torch.zeros(2, 1, 3, 4, 4), r"x: got .*\[2, 1, 3, 4, 4\].*expected.*\[N, C, H, W\]"),
        ("m", torch.zeros(2, 1, 5, 4, 4), r"x: got .*5.*expected.*3"),
        ("s", torch.zeros(1, 5, 4, 4), r"x: got .*5.*expected.*3"),
        ("m", torch.zeros(2, 1, 3, 4, 4, dtype=torch.int64), r"x: got .*int64.*expected.*float32"),
        ("m", torch.zeros(2, 1, 3, 4, 4, dtype=torch.float64), r"x: got .*float64.*expected.*float32"),
        ("m", torch.zeros(2, 1, 3, 4, 4).numpy(), r"x: got ndarray, expected a tensor"),
        ("m", None, r"x: got NoneType, expected a tensor"),
        ("m", torch.zeros(2, 1, 3, 4, 4).to_sparse(), r"x: got .*sparse.*expected"),
        ("m", torch.zeros(2, 1, 3, 4, 4, device="meta"), r"x: got .*meta.*expected.*cpu"),
    ],
    ids=name_case,
)
def test_module_input(step_mode: str, x: object, match: str) -> None:
    layer = stc_cuda.STCLIF(3, 4, kernel_size=3, groups=2, step_mode=step_mode)
    with pytest.raises((ValueError, TypeError), match=match):
        layer(x)


# --- operators ------------------------------------------------------------------------------------------------------

OPERATORS = """
import sys, warnings
warnings.simplefilter("ignore")
import numpy, torch, stc_cuda
T, N, C, H, W, K, G = 3, 2, 6, 5, 4, 3, 2
nan, inf = float("nan"), float("inf")
f = torch.randn
seq, state, ones = f(T, N, C, H, W), f(N, C, H, W), torch.ones(C)
weight = f(C, C // G, K, K)
names = ["current", "temporal_weight", "spatial_weight", "states", "spikes", "cw", "cb", "tw", "tb", "sw", "sb",
         "threshold", "coefficients"]
inputs = dict(zip(names, [seq, weight, weight, [state], (state > 0).float(), *[ones] * 7, f(2, C)]))
options = dict(groups=G, norm_groups=G, eps=1e-5, v_threshold=1.0, v_reset=None, surrogate="sigmoid", alpha=4.0,
               spiking=True)
neuron = {"neuron": "stcplif"}
forward = {**neuron, **inputs, **options, "store_v_seq": True, "packed_spikes": False, "save_for_backward": True}
saved = torch.ops.stc_cuda.stc_forward(*forward.values())
grads = dict(grad_spikes=seq, grad_states=[state], grad_v_seq=seq)
backward = {**neuron, **grads, **inputs, "potentials": saved[3], "norm_stats": saved[4], **options,
            "detach_reset": False, "gradient_detach": False, "learns_threshold": True, "learns_coefficients": True}
torch.ops.stc_cuda.stc_backward(*backward.values())

bad_inputs = {
    "current": [None, seq[0], seq[None], seq.double(), seq.half(), seq.int(), seq.to_sparse(), seq[..., :0],
                seq[:, :, :0], seq[:, :, :5], seq[:, :1], seq[..., :3], seq.to("meta"), torch.tensor(1.0), seq.cfloat(),
                torch.quantize_per_tensor(seq, 0.1, 0, torch.qint8), 1.0, [seq], "current"],
    "temporal_weight": [None, weight[0], weight[:4], weight[:, :1], weight[..., :2], weight[..., :0], weight[..., :1],
                        weight.double(), weight.long(), weight.to_sparse(), weight.to("meta"), torch.tensor(1.0),
                        f(C, C, K, K), f(C, C // G, 5, 5), f(C, C // G, K, 5)],
    "spikes": [state[0], state[:1], state[..., :1], state.double(), state.int(), state.to_sparse(), state.to("meta"),
               torch.tensor(0.0), seq, state[:, :0]],
    "cw": [None, ones[:5], ones[:1], f(C + 1), ones.double(), ones.int(), ones.to_sparse(), ones.to("meta"),
           torch.tensor(1.0), f(C, 1)],
}
bad_inputs["spatial_weight"] = bad_inputs["temporal_weight"]
bad_inputs["states"] = [[x] for x in bad_inputs["spikes"]] + [None, state, [], [state, state]]
bad_inputs["threshold"] = bad_inputs["cw"][1:]
bad_inputs["coefficients"] = [None, ones, f(1, C), f(3, C), f(2, C - 1), f(2, C).double(), f(2, C).int(), f(2, C, 1),
                              f(2, C).to_sparse(), f(2, C).to("meta")]
for name in ("cb", "tw", "tb", "sw", "sb"):
    bad_inputs[name] = bad_inputs["cw"]
bad_options = {
    "neuron": ["", "lif", "stclif", "stclmh", None, 1],
    "groups": [0, -1, 4, 5, 12, 2**40, -2**63, 2.5, None], "norm_groups": [0, -1, 4, 5, 12, 2**62, None],
    "surrogate": ["", "relu", None, 1], "eps": [None, "x"], "v_threshold": [None], "alpha": [None],
}
bad_forward = {**bad_inputs, **bad_options, "spikes": [*bad_inputs["spikes"], state, state * nan]}
bad_backward = {
    **bad_inputs, **bad_options,
    "grad_spikes": [seq[0], seq[:1], seq[..., :1], seq.double(), seq.int(), seq.to_sparse(), seq.to("meta"),
                    torch.tensor(0.0), state],
    "grad_states": [*([x] for x in (state[0], state[:1], state.double(), state.long(), state.to_sparse(),
                                    state.to("meta"), seq)), None, state, [], [state, state]],
    "potentials": [None, torch.empty(0), seq, seq[None, 0], seq[None, :1], seq[None].double(), seq[None].int(),
                   seq[None].to_sparse(), seq[None].to("meta"), f(1), f(2, *seq.shape)],
    "norm_stats": [None, torch.empty(0), saved[4][0], saved[4][:, :1], saved[4].float(), saved[4].to_sparse(),
                   saved[4].to("meta"), saved[4].long()],
}
bad_backward["grad_v_seq"] = bad_backward["grad_spikes"]

count = 0
for op, good, bad in ((torch.ops.stc_cuda.stc_forward, forward, bad_forward),
                      (torch.ops.stc_cuda.stc_backward, backward, bad_backward)):
    for name, values in bad.items():
        for i, value in enumerate(values):
            print(op, name, i, file=sys.stderr, flush=True)
            try:
                op(*{**good, name: value}.values())
                # PyTorch sends any call with a meta tensor to the fake kernel, which reads no memory.
                if any(getattr(x, "is_meta", False) for x in (value if isinstance(value, list) else [value])):
                    continue
            except (RuntimeError, ValueError, TypeError, NotImplementedError, OverflowError):
                count += 1
            else:
                print("accepted:", op, name, i, getattr(value, "shape", value), getattr(value, "dtype", ""))
    for arguments in ((), list(good.values())[:-1], [*good.values(), 1]):
        try:
            op(*arguments)
        except (RuntimeError, TypeError):
            count += 1
        else:
            print("accepted: wrong number of arguments")
# Permitted though odd: no gradient at all, and empty sequences.
nothing = {**dict.fromkeys(grads), "grad_states": [None]}
for x in torch.ops.stc_cuda.stc_backward(*{**backward, **nothing}.values()):
    assert all((y == 0).all() for y in (x if isinstance(x, list) else [x]))
print("raised", count)
"""


def run_script(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=Path(__file__).parent,
    )


def test_malformed_calls_of_the_operators_raise() -> None:
    """The operators are public through torch.ops; in a process of its own, so that a crash is a failure here."""
    done = run_script(OPERATORS)
    assert done.returncode == 0, f"exit {done.returncode} after: {done.stderr[-1500:]}"
    accepted = [line for line in done.stdout.splitlines() if line.startswith("accepted")]
    assert not accepted, "\n".join(accepted)
    raised = int(done.stdout.split("raised")[1])
    assert raised > 250


# Values no check can refuse: the kernels must survive them.
NON_FINITE = """
import torch, stc_cuda
nan, inf = float("nan"), float("inf")
for dtype in (torch.float32, torch.float64):
    for value in (nan, inf, -inf, 3e38, -3e38, 1e-45):
        for name in ("current", "temporal_weight", "v", "norm"):
            for v_reset in (None, 0.0):
                x = torch.randn(3, 2, 8, 6, 5, dtype=dtype)
                w = torch.randn(8, 4, 5, 5, dtype=dtype)
                v = torch.randn(2, 8, 6, 5, dtype=dtype)
                n = torch.ones(8, dtype=dtype)
                {"current": x, "temporal_weight": w, "v": v, "norm": n}[name].flatten()[3] = value
                leaves = [t.requires_grad_() for t in (x, w, v, n)]
                s, v_last = stc_cuda.stc_lif(x, w, w, groups=2, v=v, v_reset=v_reset, temporal_norm=(n, n),
                                             current_norm=(n, n))
                assert ((s == 0) | (s == 1)).all()
                (s.sum() + v_last.sum()).backward()
print("survived")
"""


def test_values_that_are_not_finite_do_not_crash() -> None:
    done = run_script(NON_FINITE)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "survived" in done.stdout


@pytest.mark.parametrize("spread", ["sample", "group"])
def test_a_bad_sample_stays_alone(backend: str, spread: str) -> None:
    """NaN in one sample, or one group where nothing couples the groups, reaches no other."""
    problem = make_problem(CASE, torch.float32).to(device=oracle.device_of(backend))
    clean = oracle.run(kernel(backend), problem, backward=False).outputs
    current = problem.inputs["current"]
    assert current is not None
    if spread == "sample":
        current[:, 0] = float("nan")
        kept: Callable[[Tensor], Tensor] = lambda x: x[..., 1, :, :, :]  # noqa: E731
    else:
        current[:, :, : C // GROUPS] = float("nan")
        kept = lambda x: x[..., C // GROUPS :, :, :]  # noqa: E731
    found = oracle.run(kernel(backend), problem, backward=False).outputs
    for name, x in clean.items():
        assert torch.equal(kept(found[name]), kept(x)), name


def test_states_whose_negation_is_pending() -> None:
    """The imaginary part of a conjugate is such a tensor."""
    v = torch.randn(2, 4, 3, 3, dtype=torch.complex64, generator=torch.Generator().manual_seed(1)).conj().imag
    assert v.is_neg()
    current, weight = torch.zeros(1, 2, 4, 3, 3), torch.zeros(4, 1, 3, 3)
    for function, arguments in ((stc_cuda.integrate_fire, ()), (stc_cuda.stc_lif, (weight, weight))):
        options = {"groups": 4} if arguments else {}
        found = function(current, *arguments, v=v, v_threshold=1e9, **options)[1]  # type: ignore[operator]
        assert torch.equal(found, v.resolve_neg())


def test_a_function_as_surrogate_takes_no_other_options() -> None:
    current = torch.zeros(1, 2, 3)
    for options in ({"alpha": 2.0}, {"spiking": False}):
        with pytest.raises(ValueError, match="beside a surrogate that is a function"):
            stc_cuda.lif(current, surrogate=lambda z: (z >= 0).float(), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("function", "match"),
    [
        (lambda z: z.sum(), r"surrogate: got torch\.float32 \[\] from the function, expected real spikes of the shape"),
        (lambda z: z.to(torch.complex64), r"surrogate: got torch\.complex64 \[2, 3\] from the function"),
        (lambda z: None, r"surrogate: got NoneType from the function"),
        (stc_cuda.Surrogate(function=3), r"surrogate: got 3 as its function, expected a callable"),  # type: ignore[arg-type]
        (stc_cuda.Surrogate(function=torch.sigmoid, alpha=2.0), r"surrogate: got alpha or spiking beside a function"),
        (stc_cuda.Surrogate(function=torch.sigmoid, spiking=False), r"surrogate: got alpha or spiking beside"),
    ],
)
def test_what_a_function_as_surrogate_returns(function: object, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        stc_cuda.lif(torch.zeros(1, 2, 3), surrogate=function, backend="reference")


def test_the_name_beside_a_function_is_not_read() -> None:
    given = stc_cuda.Surrogate("none of them", function=lambda z: (z >= 0).to(z.dtype))
    assert stc_cuda.lif(torch.full((1, 2, 3), 4.0), surrogate=given, backend="reference")[0].all()


def test_thresholds_that_no_potential_reaches() -> None:
    largest = torch.finfo(torch.float32).max
    spikes, v = stc_cuda.integrate_fire(torch.ones(2, 1, 3), v_threshold=largest, v_reset=-largest)
    assert not spikes.any()
    assert torch.equal(v, torch.full((1, 3), 2.0))


def test_a_function_may_return_truth_values() -> None:
    current = torch.tensor([0.5, 1.5, 2.5]).reshape(1, 1, 3)
    for v_reset in (None, 0.0):
        found = stc_cuda.integrate_fire(current, v_reset=v_reset, surrogate=lambda z: z >= 0, backend="reference")
        expected = stc_cuda.integrate_fire(current, v_reset=v_reset)
        assert all(torch.equal(*pair) and pair[0].dtype == pair[1].dtype for pair in zip(found, expected, strict=True))


def test_soft_spikes_of_a_function_are_not_packed() -> None:
    given = arguments()
    options = {"packed_spikes": True, "backend": "reference"}
    with torch.no_grad():
        hard = stc_cuda.stc_lif(**{**given, **options, "surrogate": lambda z: (z >= 0).to(z.dtype)})[0]
        assert torch.equal(hard, stc_cuda.stc_lif(**{**given, "packed_spikes": True})[0])
        with pytest.raises(
            ValueError, match=r"packed_spikes: got values other than 0 and 1, expected 0/1 spikes of the"
        ):
            stc_cuda.stc_lif(**{**given, **options, "surrogate": torch.sigmoid})


def test_scan_knows_the_states_of_its_neurons() -> None:
    current = torch.zeros(1, 2, 3)
    numbers = (0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="states: got spikes, v, dendrite, expected v, dendrite, spikes in this order"):
        stc_cuda.scan("tclif", current, states=dict.fromkeys(("spikes", "v", "dendrite")), coefficients=numbers)
    with pytest.raises(ValueError, match=r"v_reset: got 0\.0, expected None: tclif"):
        stc_cuda.scan(
            "tclif", current, states=dict.fromkeys(("v", "dendrite", "spikes")), coefficients=numbers, v_reset=0.0
        )
    with pytest.raises(TypeError, match="states: got list"):
        stc_cuda.scan("lif", current, states=[None], coefficients=(0.5, 0.5))  # type: ignore[arg-type]
