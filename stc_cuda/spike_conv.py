"""The feed-forward convolution of spikes."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from ._autograd import run_spike_conv
from ._checks import DTYPES, check_tensor

PATHS = ("auto", "events", "dense")
_REAL = (
    "stc_cuda: the input of a spike convolution holds values other than 0 and 1, so it runs as an ordinary convolution "
    "and keeps its input for backward as it is; {}"
)
_warned = False


def spike_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, path: str = "auto") -> Tensor:
    """Convolves 0/1 spikes: :func:`torch.nn.functional.conv2d` with stride 1 and padding ``K // 2``.

    On a CPU a spike adds its weights to the output and the gradients that it sees to the gradient of its weights
    (``"events"``), below the firing rate at which that beats the dense convolution; each pass of each call counts its
    spikes and chooses. What is saved for backward are the spikes as bits, an eighth of a byte per neuron. Results and
    gradients are those of torch up to rounding and do not depend on the number of threads where the path is events. (A
    weight that is infinite or NaN reaches only the outputs that see a spike through it: events multiply nothing by 0.)

    Other values than 0 and 1 get the ordinary convolution, with a warning once a process. In a graph of
    ``torch.compile`` that trains the weight they raise when the graph runs. On a GPU the convolution is torch's in
    any case and the bits alone are ours; to see whether the values are spikes, a call waits for the device.

    Args:
        x: spikes ``[N, C, H, W]`` or ``[C, H, W]``, float32, float64, float16 or bfloat16, in any memory format.
        weight: ``[O, C, K, K]`` of the same dtype, K odd.
        bias: ``[O]``.
        path: ``"auto"``; ``"events"`` or ``"dense"`` make both passes on a CPU run so.

    Returns:
        ``[N, O, H, W]`` or ``[O, H, W]``, channels_last if ``x`` is. Under autocast of its dtype.

    Raises:
        TypeError: an argument is not a dense floating-point tensor, or dtypes differ.
        ValueError: a rank, shape, device or ``path`` is not as described here.
    """
    check_tensor("x", x, "[N, C, H, W] or [C, H, W]")
    check_tensor("weight", weight, "[O, C, K, K]")
    if bias is not None:
        check_tensor("bias", bias, "[O]")
    if path not in PATHS:
        raise ValueError(f"path: got {path!r}, expected one of {', '.join(map(repr, PATHS))}")
    if x.dim() not in (3, 4):
        raise ValueError(f"x: got shape {list(x.shape)}, expected [N, C, H, W] or [C, H, W]")
    channels, kernel = x.shape[-3], weight.shape[-1] if weight.dim() == 4 else 0
    if weight.dim() != 4 or tuple(weight.shape[1:]) != (channels, kernel, kernel) or kernel % 2 == 0:
        raise ValueError(
            f"weight: got shape {list(weight.shape)}, expected [O, {channels}, K, K] with an odd K; for other "
            "convolutions use torch.nn.functional.conv2d"
        )
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(f"bias: got shape {list(bias.shape)}, expected [{weight.shape[0]}]")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"{name}: got device {tensor.device}, expected {x.device}, the device of x")
        if tensor is not None and tensor.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
            raise TypeError(f"{name}: got dtype {tensor.dtype}, expected {x.dtype}, the dtype of x")
    out, taken = _convolve(x, weight, bias, path)
    global _warned
    if taken == "real" and not _warned:
        _warned = True
        warnings.warn(_REAL.format("use torch.nn.functional.conv2d for such input"), stacklevel=2)
    return out


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, path: str) -> tuple[Tensor, str | None]:
    """The result, and the path as :func:`run_spike_conv` tells it, or ``"conv2d"`` where nobody looked at ``x``."""
    if not x.numel() or not weight.numel() or _has_nothing_to_gain(x, weight):
        return nn.functional.conv2d(x, weight, bias, padding=weight.shape[-1] // 2), "conv2d"
    device = x.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        weight, bias = _cast(weight, dtype), None if bias is None else _cast(bias, dtype)
    batch = x if x.dim() == 4 else x.unsqueeze(0)
    out, taken = run_spike_conv(batch, weight, bias, path)
    return out if x.dim() == 4 else out.squeeze(0), taken


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if x.dtype == torch.float64 else x.to(dtype)


def _has_nothing_to_gain(x: Tensor, weight: Tensor) -> bool:
    """Whether the device has no kernels, and bits are of no use there or the check of the values cannot wait for it."""
    if x.device.type != "cuda":
        return x.device.type != "cpu"
    learns = weight.requires_grad and torch.is_grad_enabled()
    return not learns or torch.compiler.is_compiling() or torch.cuda.is_current_stream_capturing()


class SpikeConv2d(nn.Conv2d):
    """:class:`torch.nn.Conv2d` for an input of 0/1 spikes: :func:`stc_cuda.spike_conv2d` as a module.

    Constructor, parameters and state-dict keys are those of ``nn.Conv2d``. With stride, dilation or groups other than
    1, another ``padding_mode`` than zeros, a kernel that is not square and odd, or another padding than ``K // 2``
    (or ``"same"``) it is an ``nn.Conv2d`` and nothing more.

    Attributes:
        expects_spikes: ``True``: values other than 0 and 1 give a warning, once a module, and an error in a graph of
            ``torch.compile`` that trains the weight. ``None``: every call looks at its input and takes what it is,
            without a warning; in a graph of ``torch.compile`` the module is an ``nn.Conv2d``, and so it is on a GPU.
            ``False``: it always is.
        last_path: what the last call ran: ``"events"``, ``"dense"`` (both with spikes kept as bits), or ``"conv2d"``,
            the ordinary convolution. None before the first call; calls inside of ``torch.compile`` do not change it.

    Raises:
        as ``nn.Conv2d``.
    """

    expects_spikes: bool | None
    last_path: str | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.expects_spikes = True
        self.last_path = None
        self._warned = False

    def forward(self, input: Tensor) -> Tensor:
        compiling = torch.compiler.is_compiling()
        if self._is_plain(input, compiling):
            if not compiling:
                self.last_path = "conv2d"
            return super().forward(input)
        out, taken = _convolve(input, self.weight, self.bias, "auto")
        if compiling or taken is None:
            return out
        self.last_path = "conv2d" if taken == "real" else taken
        if taken == "real" and self.expects_spikes and not self._warned:
            self._warned = True
            warnings.warn(_REAL.format("set expects_spikes = False on the module, or use nn.Conv2d"), stacklevel=2)
        return out

    def _is_plain(self, x: Tensor, compiling: bool) -> bool:
        kernel = self.kernel_size[0]
        on_cpu = x.device.type == "cpu"
        return (
            self.expects_spikes is False
            or (self.expects_spikes is None and (compiling or not on_cpu))
            or self.kernel_size != (kernel, kernel)
            or kernel % 2 == 0
            or self.padding not in ("same", (kernel // 2, kernel // 2))
            or self.stride != (1, 1)
            or self.dilation != (1, 1)
            or self.groups != 1
            or self.padding_mode != "zeros"
            # nn.Conv2d has the errors for what fits no convolution.
            or x.layout != torch.strided
            or x.dim() not in (3, 4)
            or x.shape[-3] != self.in_channels
            or x.dtype not in DTYPES
            or x.device != self.weight.device
            or (x.dtype != self.weight.dtype and not torch.is_autocast_enabled(x.device.type))
        )
