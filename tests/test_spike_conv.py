"""The feed-forward convolution of spikes against torch's: every path, type, layout and way to call it."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import stc_cuda
import stc_cuda.spike_conv as spike_conv
from stc_cuda import SpikeConv2d, spike_conv2d, unpack_spikes
from stc_cuda._autograd import SpikeConvFunction
from stc_cuda.profiling import saved_bytes

OPERATORS = torch.ops.stc_cuda
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
# [N, C, H, W], O, K
SIZES = [
    ((1, 1, 1, 1), 1, 1),
    ((2, 3, 5, 7), 4, 3),
    ((1, 33, 17, 13), 11, 5),
    ((3, 70, 8, 40), 40, 7),
    ((1, 130, 6, 5), 72, 1),
    ((11, 9, 4, 33), 3, 9),
    ((2, 64, 32, 32), 64, 5),
]
every_size = pytest.mark.parametrize(("size", "out_channels", "kernel"), SIZES, ids=str)
forced = pytest.mark.parametrize("path", ["events", "dense"])


@pytest.fixture(autouse=True)
def not_warned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spike_conv, "_warned", False)


def draw(
    size: tuple[int, ...], out_channels: int, kernel: int, dtype: torch.dtype = torch.float64, rate: float = 0.2
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Spikes, weight, bias and the gradient of the result."""
    random = torch.Generator().manual_seed(3)
    x = (torch.rand(size, generator=random) < rate).to(dtype)
    weight = torch.randn(out_channels, size[1], kernel, kernel, generator=random, dtype=torch.float64).to(dtype)
    bias = torch.randn(out_channels, generator=random, dtype=torch.float64).to(dtype)
    grad = torch.randn(size[0], out_channels, *size[2:], generator=random, dtype=torch.float64).to(dtype)
    return x, weight, bias, grad


def expected_of(x: Tensor, weight: Tensor, bias: Tensor | None, grad: Tensor) -> list[Tensor]:
    """Result and gradients of all inputs, in float64."""
    leaves = [t.detach().double().requires_grad_() for t in (x, weight, bias) if t is not None]
    out = nn.functional.conv2d(*leaves, padding=weight.shape[-1] // 2)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.double())]


def found_of(x: Tensor, weight: Tensor, bias: Tensor | None, grad: Tensor, path: str = "auto") -> list[Tensor]:
    leaves = [None if t is None else t.detach().requires_grad_() for t in (x, weight, bias)]
    out = spike_conv2d(*leaves, path=path)  # type: ignore[arg-type]
    return [out.detach(), *torch.autograd.grad(out, [t for t in leaves if t is not None], grad)]


def assert_like(found: list[Tensor], expected: list[Tensor], dtype: torch.dtype) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        assert ours.dtype == dtype
        largest = theirs.abs().max().item() if theirs.numel() else 0.0
        assert torch.isfinite(ours).all()
        assert (ours.double() - theirs).abs().max().item() <= TOLERANCE[dtype] * max(largest, 1.0)


@forced
@every_size
@pytest.mark.parametrize("rate", [0.0, 0.1, 1.0])
def test_results_and_gradients_are_those_of_conv2d(
    size: tuple[int, ...], out_channels: int, kernel: int, path: str, rate: float, poison: None
) -> None:
    for dtype in (torch.float64, torch.float32):
        x, weight, bias, grad = draw(size, out_channels, kernel, dtype, rate)
        assert_like(found_of(x, weight, bias, grad, path), expected_of(x, weight, bias, grad), dtype)
        assert_like(found_of(x, weight, None, grad, path), expected_of(x, weight, None, grad), dtype)


@forced
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_short_types(dtype: torch.dtype, path: str) -> None:
    x, weight, bias, grad = draw((2, 12, 9, 8), 10, 3, dtype)
    assert_like(found_of(x, weight, bias, grad, path), expected_of(x, weight, bias, grad), dtype)


def path_of(report: Tensor) -> str:
    return ("events", "dense", "real")[int(report[0])]


def test_few_spikes_go_by_events_and_many_do_not() -> None:
    for rate, path in ((0.05, "events"), (0.9, "dense")):
        x, weight, bias, grad = draw((2, 64, 32, 32), 64, 5, torch.float32, rate)
        _, bits, report = OPERATORS.spike_conv(x, weight, bias, False, "auto")
        assert (path_of(report), int(report[1])) == (path, int(x.sum()))
        _, report = OPERATORS.spike_conv_weight_gradient(grad, bits, 64, 5, "auto")
        assert (path_of(report), int(report[1])) == (path, int(x.sum()))


@every_size
def test_the_bits_are_the_spikes(size: tuple[int, ...], out_channels: int, kernel: int) -> None:
    x, weight, *_ = draw(size, out_channels, kernel, torch.float32, 0.4)
    _, bits, _ = OPERATORS.spike_conv(x, weight, None, False, "auto")
    assert torch.equal(unpack_spikes(bits, size[1]), x)


def test_results_do_not_depend_on_the_number_of_threads(threads: None) -> None:
    arguments = draw((5, 70, 19, 21), 50, 5, torch.float32)
    torch.set_num_threads(1)
    one = found_of(*arguments, path="events")
    for count in (2, 3, 7):
        torch.set_num_threads(count)
        many = found_of(*arguments, path="events")
        assert all(torch.equal(a, b) for i, (a, b) in enumerate(zip(one, many, strict=True)) if i != 1)  # torch's own


@pytest.mark.parametrize("layout", ["channels_last", "sliced", "expanded", "transposed"])
def test_memory_formats(layout: str) -> None:
    x, weight, bias, grad = draw((2, 10, 6, 8), 7, 3)
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == "sliced":
        x = torch.nn.functional.pad(x, (1, 2, 3, 4))[:, :, 3:-4, 1:-2]
    elif layout == "expanded":
        x = x[:1].expand(2, -1, -1, -1)
    else:
        x, grad = x.transpose(2, 3), grad.transpose(2, 3)
    out = spike_conv2d(x, weight, bias, path="events")
    assert out.is_contiguous(memory_format=torch.channels_last) == (layout == "channels_last")
    assert_like(found_of(x, weight, bias, grad), expected_of(x, weight, bias, grad), torch.float64)


def test_one_sample_without_a_batch_and_an_empty_batch() -> None:
    x, weight, bias, _ = draw((1, 6, 5, 4), 3, 3)
    assert torch.equal(spike_conv2d(x[0], weight, bias), spike_conv2d(x, weight, bias)[0])
    empty = x[:0].requires_grad_()
    learnt = weight.clone().requires_grad_()
    out = spike_conv2d(empty, learnt, bias)
    assert out.shape == (0, 3, 5, 4)
    out.sum().backward()
    assert torch.equal(learnt.grad, torch.zeros_like(weight))  # type: ignore[arg-type]


@pytest.mark.parametrize("frozen", ["weight", "input", "bias", "all"])
def test_only_what_learns_gets_a_gradient(frozen: str) -> None:
    x, weight, bias, grad = draw((2, 6, 5, 4), 3, 3)
    names = dict(zip(("input", "weight", "bias"), (x, weight, bias), strict=True))
    for name, tensor in names.items():
        tensor.requires_grad_(frozen not in (name, "all"))
    out = spike_conv2d(x, weight, bias)
    assert out.requires_grad == (frozen != "all")
    if frozen == "all":
        return
    out.backward(grad)
    for (name, tensor), theirs in zip(names.items(), expected_of(x, weight, bias, grad)[1:], strict=True):
        assert (tensor.grad is None) == (frozen == name)
        if tensor.grad is not None:
            torch.testing.assert_close(tensor.grad, theirs)


@forced
def test_gradcheck(path: str) -> None:
    x, weight, bias, _ = draw((1, 3, 4, 5), 2, 3)
    assert torch.autograd.gradcheck(
        lambda w, b: spike_conv2d(x, w, b, path=path), (weight.requires_grad_(), bias.requires_grad_())
    )


def test_a_second_derivative_of_the_weight_raises() -> None:
    x, weight, _, _ = draw((1, 3, 4, 5), 2, 3)
    weight.requires_grad_()
    (grad,) = torch.autograd.grad(spike_conv2d(x, weight).square().sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="spike_conv_weight_gradient"):
        grad.sum().backward()


def test_saved_for_backward_are_bits() -> None:
    x, weight, _, _ = draw((2, 64, 16, 16), 32, 5, torch.float32)
    weight.requires_grad_()
    saved = saved_bytes(lambda: spike_conv2d(x, weight), exclude=[weight])
    assert x.numel() / 8 <= saved <= 0.2 * x.numel()
    assert saved_bytes(lambda: nn.functional.conv2d(x, weight, padding=2), exclude=[weight]) >= 4 * x.numel()
    # with a frozen weight nothing of the input is needed
    x.requires_grad_()
    assert saved_bytes(lambda: spike_conv2d(x, weight.detach()), exclude=[weight]) == 0
    with torch.no_grad():
        assert saved_bytes(lambda: spike_conv2d(x, weight)) == 0


def test_values_that_are_no_spikes_get_the_ordinary_convolution_and_one_warning() -> None:
    for value in (0.5, 2.0, -1.0, float("nan")):
        x, weight, bias, grad = draw((2, 40, 9, 8), 10, 3)
        x[1, 39, 8, 7] = value
        module = SpikeConv2d(40, 10, 3, padding=1, dtype=torch.float64)
        with pytest.warns(UserWarning, match="other than 0 and 1"):
            module(x)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            module(x)
        assert module.last_path == "conv2d"
        if value == value:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert_like(found_of(x, weight, bias, grad), expected_of(x, weight, bias, grad), torch.float64)
    spike_conv._warned = False
    with pytest.warns(UserWarning, match="other than 0 and 1"):
        spike_conv2d(x, weight)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spike_conv2d(x, weight)


def test_minus_zero_is_no_spike() -> None:
    x, weight, bias, grad = draw((2, 6, 5, 4), 3, 3)
    assert_like(found_of(-x * 0, weight, bias, grad), expected_of(x * 0, weight, bias, grad), torch.float64)


def test_expects_spikes_decides_who_is_looked_at() -> None:
    module = SpikeConv2d(4, 8, 3, padding=1)
    spikes, real = (torch.rand(2, 4, 5, 5) < 0.1).float(), torch.rand(2, 4, 5, 5)
    assert module.last_path is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(spikes)
        assert module.last_path in ("events", "dense")
        module.expects_spikes = None
        assert torch.equal(module(real), nn.functional.conv2d(real, module.weight, module.bias, padding=1))
        assert module.last_path == "conv2d"
        module(spikes)
        assert module.last_path in ("events", "dense")
        module.expects_spikes = False
        module(spikes)
        assert module.last_path == "conv2d"


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2},
        {"dilation": 2},
        {"groups": 2},
        {"padding": 0},
        {"padding_mode": "circular"},
        {"kernel_size": 4},
        {"kernel_size": (3, 5), "padding": (1, 2)},
        {"padding": "valid"},
    ],
    ids=str,
)
def test_with_other_options_it_is_conv2d(options: dict[str, object]) -> None:
    arguments = {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "padding": 1, **options}
    module = SpikeConv2d(**arguments)  # type: ignore[arg-type]
    plain = nn.Conv2d(**arguments)  # type: ignore[arg-type]
    plain.load_state_dict(module.state_dict())
    x = (torch.rand(2, 4, 9, 8) < 0.3).float()
    assert torch.equal(module(x), plain(x))
    assert module.last_path == "conv2d"


def test_the_module_is_a_conv2d() -> None:
    module = SpikeConv2d(4, 6, 3, padding="same")
    plain = nn.Conv2d(4, 6, 3, padding=1)
    assert list(module.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(module.state_dict(), strict=True)
    x = (torch.rand(2, 4, 9, 8) < 0.1).float()
    torch.testing.assert_close(module(x), plain(x))
    assert module.last_path in ("events", "dense")
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    for other in (copy.deepcopy(module), torch.load(file, weights_only=False)):
        assert torch.equal(other(x), module(x))
    for wrong in (torch.zeros(2, 5, 9, 8), torch.zeros(4, 9)):
        with pytest.raises(RuntimeError):
            module(wrong)
    with pytest.raises(RuntimeError, match=r"dtype|type"):
        module(x.double())


def test_autocast() -> None:
    x, weight, bias, grad = draw((2, 12, 9, 8), 10, 3, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = [t.float() for t in found_of(x, weight, bias, grad.bfloat16(), "events")]
        assert spike_conv2d(x, weight, bias).dtype == torch.bfloat16
    for ours, theirs in zip(found, expected_of(x, weight, bias, grad), strict=True):
        assert (ours - theirs).abs().max() <= 2e-2 * theirs.abs().max()


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"x": 1}, TypeError, "x: got int"),
        ({"x": torch.zeros(2, 3, 4, 4, dtype=torch.int64)}, TypeError, "x: got dtype torch.int64"),
        ({"x": torch.zeros(2, 3)}, ValueError, r"x: got shape \[2, 3\]"),
        ({"x": torch.zeros(2, 5, 4, 4)}, ValueError, r"weight: got shape \[6, 3, 3, 3\], expected \[O, 5, K, K\]"),
        ({"weight": torch.zeros(6, 3, 2, 2)}, ValueError, "odd K"),
        ({"weight": torch.zeros(6, 3, 3, 5)}, ValueError, "odd K"),
        ({"weight": torch.zeros(6, 3, 3)}, ValueError, "odd K"),
        ({"weight": torch.zeros(6, 3, 3, 3).double()}, TypeError, "weight: got dtype torch.float64"),
        ({"weight": torch.zeros(6, 3, 3, 3, device="meta")}, ValueError, "weight: got device meta"),
        ({"bias": torch.zeros(5)}, ValueError, r"bias: got shape \[5\], expected \[6\]"),
        ({"path": "fast"}, ValueError, "path: got 'fast', expected one of 'auto', 'events', 'dense'"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_bad_input(change: dict[str, object], error: type[Exception], match: str) -> None:
    arguments = {"x": torch.zeros(2, 3, 4, 4), "weight": torch.zeros(6, 3, 3, 3), "bias": None, **change}
    with pytest.raises(error, match=match):
        spike_conv2d(**arguments)  # type: ignore[arg-type]


def test_the_operators_guard_memory() -> None:
    x, weight, _, grad = draw((2, 5, 4, 6), 3, 3, torch.float32)
    _, bits, _ = OPERATORS.spike_conv(x, weight, None, False, "auto")
    for wrong in (bits[:1], bits.float(), bits | 0x80):  # five channels leave three bits of a byte
        with pytest.raises(ValueError, match="spikes"):
            OPERATORS.spike_conv_weight_gradient(grad, wrong, 5, 3, "events")
    with pytest.raises(ValueError, match="weight"):
        OPERATORS.spike_conv(x, weight[:, :4], None, False, "auto")
    with pytest.raises(ValueError, match="bias"):
        OPERATORS.spike_conv(x, weight, torch.zeros(2), False, "auto")


@forced
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(path: str, dtype: torch.dtype) -> None:
    x, weight, bias, grad = draw((2, 5, 4, 6), 3, 3, dtype)
    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        torch.library.opcheck(OPERATORS.spike_conv.default, (given, weight, bias, True, path))
    _, bits, _ = OPERATORS.spike_conv(x, weight, None, False, path)
    torch.library.opcheck(OPERATORS.spike_conv_weight_gradient.default, (grad, bits, 5, 3, path))


@pytest.fixture
def compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("learns", [True, False])
def test_compile(compiler: None, learns: bool) -> None:
    x, weight, bias, grad = draw((2, 5, 4, 6), 3, 3)
    module = SpikeConv2d(5, 3, 3, padding=1, dtype=torch.float64).requires_grad_(learns)
    module.load_state_dict({"weight": weight, "bias": bias})
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x.requires_grad_()
    out = compiled(x)
    expected = expected_of(x, weight, bias, grad)
    torch.testing.assert_close(out, expected[0])
    out.backward(grad)
    torch.testing.assert_close(x.grad, expected[1])
    if learns:
        torch.testing.assert_close(module.weight.grad, expected[2])
        with pytest.raises(ValueError, match=r"expected spikes.*expects_spikes"):
            compiled(x.detach() + 0.5)
    else:
        real = x.detach() + 0.5
        torch.testing.assert_close(compiled(real), nn.functional.conv2d(real, weight, bias, padding=1))
    module.expects_spikes = None
    real = torch.rand(2, 5, 4, 6, dtype=torch.float64)
    torch.testing.assert_close(compiled(real), nn.functional.conv2d(real, weight, bias, padding=1))


def test_the_path_of_a_gpu_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bits and gradients are plain tensor operations, so they can be held to torch's here."""
    import stc_cuda._autograd as autograd

    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, *_: object) -> tuple[Tensor, Tensor, Tensor]:
        return autograd._torch_spike_conv(x, weight, bias)

    monkeypatch.setattr(autograd, "_spike_conv_forward", forward)
    monkeypatch.setattr(OPERATORS, "spike_conv_weight_gradient", autograd._torch_weight_gradient)
    x, weight, bias, grad = draw((2, 13, 6, 5), 4, 3)
    for given in (x, x + 0.5):
        leaves = [t.detach().requires_grad_() for t in (given, weight, bias)]
        out, report = SpikeConvFunction.apply(*leaves, "auto")
        assert path_of(report) == ("dense" if given is x else "real")
        found = [out.detach(), *torch.autograd.grad(out, leaves, grad)]
        assert_like(found, expected_of(given, weight, bias, grad), torch.float64)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu() -> None:
    x, weight, bias, grad = (t.cuda() for t in draw((2, 13, 6, 5), 4, 3))
    assert_like(found_of(x, weight, bias, grad), expected_of(x, weight, bias, grad), torch.float64)
    weight.requires_grad_()
    assert saved_bytes(lambda: spike_conv2d(x, weight), exclude=[weight]) <= 0.2 * x.numel()
    with pytest.warns(UserWarning, match="other than 0 and 1"):
        spike_conv2d(x + 0.5, weight)


@pytest.mark.parametrize("neuron", ["stclif", "lif"])
def test_a_predictor_spikes_as_with_ordinary_convolutions(neuron: str) -> None:
    torch.manual_seed(5)
    options = {"in_shape": (3, 1, 16, 16), "out_frames": 2, "hidden": (16, 16, 16), "groups": 4, "kernel_size": 3}
    model = stc_cuda.models.SpikingPredictor(neuron, **options).double()  # type: ignore[arg-type]
    plain = copy.deepcopy(model)
    for cell in plain.cell_list:
        old = cell.conv_x[0]  # type: ignore[index]
        cell.conv_x[0] = nn.Conv2d(old.in_channels, old.out_channels, 3, padding=1, bias=False).double()  # type: ignore
    plain.load_state_dict(model.state_dict(), strict=True)
    seen: dict[str, list[Tensor]] = {"model": [], "plain": []}
    for name, module in (("model", model), ("plain", plain)):
        for cell in module.cell_list:
            cell.register_forward_hook(lambda _m, _i, out, name=name: seen[name].append(out.detach()))
    frames = torch.rand(2, 5, 1, 16, 16, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the first layer's patches are no spikes, and are not meant to be
        ours, theirs = model(frames), plain(frames)
    paths = [cell.conv_x[0].last_path for cell in model.cell_list]  # type: ignore[index]
    assert paths[0] == "conv2d"
    assert all(path in ("events", "dense") for path in paths[1:])
    assert seen["model"]
    assert sum(int(x.sum()) for x in seen["model"]) > 0
    assert all(torch.equal(a, b) for a, b in zip(seen["model"], seen["plain"], strict=True))
    ours.square().sum().backward()
    theirs.square().sum().backward()
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_a_layer_looks_at_its_input() -> None:
    layer = stc_cuda.STCLIF(4, 8, kernel_size=3, groups=2)
    spikes = (torch.rand(3, 2, 4, 6, 6) < 0.1).float()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(torch.rand(3, 2, 4, 6, 6))
        assert layer.conv_x[0].last_path == "conv2d"
        layer.reset()
        layer(spikes)
    assert layer.conv_x[0].last_path in ("events", "dense")
