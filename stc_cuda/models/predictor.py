"""The video predictor of the STC paper: stacked spiking layers, one step per frame."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..neurons import NEURONS, NeuronLayer
from ..spike_conv import SpikeConv2d
from .checkpoint import load_official_checkpoint
from .patches import frames_to_patches, patches_to_frames


class SpikingPredictor(nn.Module):
    """Predicts the next frames of a video with a stack of spiking layers.

    A frame is cut into patches, runs through the layers as one step of their recurrence, and a bias-free 1x1
    convolution of the last layer's spikes is the prediction of the next frame. The first ``T_in`` frames are given;
    afterwards the network sees its own predictions, or true frames where a ``teacher_mask`` says so.

    Architecture, arithmetic and state-dict keys (``cell_list.{i}.conv_x.0.weight``, ..., ``conv_last.weight``) are
    those of the authors' models, so that their checkpoints load strictly. Source: "Autaptic Synaptic Circuit Enhances
    Spatio-temporal Predictive Learning of Spiking Neural Networks", ICML 2024.

    No state outlives a call: every call starts from zero and leaves nothing behind.

    Args:
        neuron: the layers' neuron: ``"lif"``, ``"plif"``, ``"glif"``, ``"tclif"``, ``"lmh"``, ``"stclif"``,
            ``"stcplif"``, ``"stclmh"``, or a subclass of :class:`stc_cuda.neurons.NeuronLayer`.
        in_shape: ``(T_in, C, H, W)``: frames given, channels, height and width in pixels. Height and width may differ.
        out_frames: T_out, frames to predict after the given ones.
        hidden: channels of each layer; each divisible by ``groups``.
        patch_size: side of a patch in pixels; divides H and W. The layers' map is ``[H/p, W/p]``.
        kernel_size: K of all the layers' convolutions, odd.
        groups: groups of the recurrent convolutions and of the norms.
        gradient_detach: no gradient through the spikes that enter the recurrent convolutions; the authors have
            ``False`` for Moving MNIST, ``True`` for TaxiBJ and KTH. Only circuits have such convolutions.
        backend: see :func:`stc_cuda.stc_lif`.
        recompute_every: less memory in training for a forward pass more, see :func:`stc_cuda.stc_lif`. Only circuits
            read it.

    Raises:
        ValueError: an argument is out of range, or there is no neuron of that name.
        TypeError: an argument has the wrong type.
    """

    def __init__(
        self,
        neuron: str | type[NeuronLayer] = "stclif",
        in_shape: Sequence[int] = (10, 1, 64, 64),
        out_frames: int = 10,
        hidden: Sequence[int] = (256, 256, 256),
        patch_size: int = 2,
        kernel_size: int = 5,
        groups: int = 16,
        gradient_detach: bool = False,
        backend: str = "auto",
        recompute_every: int | None = None,
    ) -> None:
        super().__init__()
        layer = _layer_class(neuron)
        in_shape = _check_counts("in_shape", in_shape, "(T_in, C, H, W)")
        if len(in_shape) != 4:
            raise ValueError(f"in_shape: got {in_shape}, expected 4 sizes: (T_in, C, H, W)")
        hidden = _check_counts("hidden", hidden, "the channels of each layer")
        if not hidden:
            raise ValueError("hidden: got no layer, expected the channels of at least one")
        for name, count in (("out_frames", out_frames), ("patch_size", patch_size), ("groups", groups)):
            _check_count(name, count)
        if any(channels % groups for channels in hidden):
            raise ValueError(f"hidden: got {hidden}, expected multiples of groups = {groups}")
        _, channels, height, width = in_shape
        if height % patch_size or width % patch_size:
            raise ValueError(
                f"patch_size: got {patch_size}, expected a divisor of the {height} x {width} pixels of in_shape"
            )

        self.in_shape = in_shape
        self.out_frames = out_frames
        self.patch_size = patch_size
        patch_channels = patch_size**2 * channels
        self.cell_list = nn.ModuleList(
            layer(
                below,
                above,
                kernel_size=kernel_size,
                groups=groups,
                gradient_detach=gradient_detach,
                backend=backend,
                recompute_every=recompute_every,
            )
            for below, above in zip((patch_channels, *hidden[:-1]), hidden, strict=True)
        )
        for index, cell in enumerate(self.cell_list):
            conv = cast(NeuronLayer, cell).conv_x[0]
            if isinstance(conv, SpikeConv2d):
                conv.expects_spikes = index > 0  # the first layer sees patches
        self.conv_last = nn.Conv2d(hidden[-1], patch_channels, kernel_size=1, bias=False)

    def forward(self, frames: Tensor, teacher_mask: Tensor | None = None) -> Tensor:
        """Predicts every frame but the first.

        Args:
            frames: ``[N, T_in + T_out, C, H, W]``, dtype and device of the parameters. The frames after ``T_in`` are
                seen only through ``teacher_mask``.
            teacher_mask: ``[N, T_out - 1]``, bool or a number in [0, 1] per sample and step after ``T_in``: the
                network sees ``mask * true + (1 - mask) * prediction``. ``None`` shows no true frame (as zeros would).
                ``[N, T_in + T_out - 2]`` says it of every step after the first, so that given frames can be hidden
                (reverse scheduled sampling); slower, because a frame that may be hidden waits for its prediction.
                :mod:`stc_cuda.models.sampling` makes both.

        Returns:
            Predictions ``[N, T_in + T_out - 1, C, H, W]`` of the frames 2 to ``T_in + T_out``, not clipped.

        Raises:
            ValueError: a rank, shape or device does not fit.
            TypeError: ``frames`` or ``teacher_mask`` is not a tensor of a fitting dtype.
        """
        given = self.in_shape[0]
        self._check_frames(frames, given + self.out_frames, "T_in + T_out")
        if teacher_mask is not None:
            self._check_mask(teacher_mask, frames)
            if teacher_mask.shape[1] > self.out_frames - 1:
                given = 1 + _leading_ones(teacher_mask)
                teacher_mask = teacher_mask[:, given - 1 :]
            teacher_mask = teacher_mask.to(frames.dtype)
        patches = frames_to_patches(frames, self.patch_size).transpose(0, 1)
        own_steps = frames.shape[1] - 1 - given
        predictions = self._unroll(patches[:given], own_steps, patches[given:], teacher_mask)
        return patches_to_frames(predictions.transpose(0, 1), self.patch_size)

    @torch.no_grad()
    def predict(self, frames: Tensor, steps: int) -> Tensor:
        """Continues a video on its own, without gradients and without labels.

        Args:
            frames: the given frames ``[N, T_in, C, H, W]``, dtype and device of the parameters.
            steps: frames to predict, at least 1; may exceed ``out_frames``.

        Returns:
            The ``steps`` frames after the given ones ``[N, steps, C, H, W]``, not clipped.

        Raises:
            ValueError, TypeError: as :meth:`forward`.
        """
        self._check_frames(frames, self.in_shape[0], "T_in")
        _check_count("steps", steps)
        patches = frames_to_patches(frames, self.patch_size).transpose(0, 1)
        predictions = self._unroll(patches, steps - 1)[-steps:]
        return patches_to_frames(predictions.transpose(0, 1), self.patch_size)

    def load_official_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Loads ``checkpoint.pth`` or ``latest.pth`` of the authors' training, all of it or nothing.

        Prefixes ``module.`` and ``model.`` are taken off the names. Nothing in the file is executed.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is not a checkpoint, or that of another model; the message says how both look.
        """
        load_official_checkpoint(self, path)

    def reset(self) -> None:
        """Forgets the layers' state; every call does so at its start and end."""
        for cell in self.cell_list:
            cell.reset()  # type: ignore[operator]

    def extra_repr(self) -> str:
        return f"in_shape={self.in_shape}, out_frames={self.out_frames}, patch_size={self.patch_size}"

    def _unroll(
        self, given: Tensor, own_steps: int, true: Tensor | None = None, teacher_mask: Tensor | None = None
    ) -> Tensor:
        """Predictions ``[T + own_steps, N, ...]`` from the patches shown at first ``[T, N, ...]``."""
        self.reset()
        try:
            # These frames wait for no prediction, so each layer takes them as one sequence.
            predictions = [self._advance(given)]
            for step in range(own_steps):
                shown = predictions[-1][-1:]
                if true is not None and teacher_mask is not None:
                    mask = teacher_mask[:, step].reshape(1, -1, 1, 1, 1)
                    shown = mask * true[step : step + 1] + (1 - mask) * shown
                predictions.append(self._advance(shown))
            return torch.cat(predictions)
        finally:
            self.reset()

    def _advance(self, patches: Tensor) -> Tensor:
        """All layers over ``[T, N, ...]`` from their present state; the readout of every step."""
        spikes = patches
        for cell in self.cell_list:
            spikes = cell(spikes)
        # Under autocast the read-out answers in 16 bits; what is fed back has the dtype of the frames.
        return self.conv_last(spikes.flatten(0, 1)).to(patches.dtype).unflatten(0, spikes.shape[:2])

    def _check_frames(self, frames: Any, count: int, count_name: str) -> None:
        expected = f"[N, {count_name}, C, H, W]"
        if not isinstance(frames, Tensor):
            raise TypeError(f"frames: got {type(frames).__name__}, expected a tensor {expected}")
        if frames.layout != torch.strided:
            raise TypeError(f"frames: got a tensor of layout {frames.layout}, expected a dense one; call .to_dense()")
        if frames.dim() != 5:
            shape = list(frames.shape)
            raise ValueError(f"frames: got {frames.dim()} dimensions, shape {shape}, expected 5: {expected}")
        if frames.shape[1] != count:
            raise ValueError(f"frames: got {frames.shape[1]} frames, expected {count} = {count_name}: {expected}")
        for index, name in ((2, "channels"), (3, "rows"), (4, "columns")):
            if frames.shape[index] != self.in_shape[index - 1]:
                raise ValueError(
                    f"frames: got {frames.shape[index]} {name}, shape {list(frames.shape)}, expected "
                    f"{self.in_shape[index - 1]} as in in_shape = (T_in, C, H, W) = {self.in_shape}"
                )
        weight = self.conv_last.weight
        if frames.dtype != weight.dtype:
            hint = "" if frames.is_floating_point() else "; scale the pixels to [0, 1] in that dtype"
            raise TypeError(f"frames: got dtype {frames.dtype}, expected {weight.dtype}, the parameters' dtype{hint}")
        if frames.device != weight.device:
            raise ValueError(f"frames: got device {frames.device}, expected {weight.device}, the parameters' device")

    def _check_mask(self, mask: Any, frames: Tensor) -> None:
        if not isinstance(mask, Tensor):
            raise TypeError(f"teacher_mask: got {type(mask).__name__}, expected a tensor [N, T_out - 1] or None")
        if mask.is_complex():
            raise TypeError(f"teacher_mask: got dtype {mask.dtype}, expected bool or numbers in [0, 1]")
        samples, steps = frames.shape[0], self.out_frames - 1
        every = frames.shape[1] - 2
        if tuple(mask.shape) not in ((samples, steps), (samples, every)):
            raise ValueError(
                f"teacher_mask: got shape {list(mask.shape)}, expected {[samples, steps]} = [N, T_out - 1], or "
                f"{[samples, every]} = [N, T_in + T_out - 2] to hide given frames, too"
            )
        if mask.device != frames.device:
            raise ValueError(f"teacher_mask: got device {mask.device}, expected {frames.device}, the device of frames")
        if not bool(((mask >= 0) & (mask <= 1)).all()):
            raise ValueError("teacher_mask: got values outside [0, 1], expected bool or numbers in [0, 1]")


def _leading_ones(mask: Tensor) -> int:
    """Steps from the first on at which every sample is shown the true frame."""
    return int((mask == 1).all(0).long().cumprod(0).sum())


def _layer_class(neuron: object) -> type[NeuronLayer]:
    if isinstance(neuron, type) and issubclass(neuron, NeuronLayer) and hasattr(neuron, "cell"):
        return neuron
    if isinstance(neuron, str) and neuron in NEURONS:
        return NEURONS[neuron]
    known = ", ".join(map(repr, NEURONS))
    raise ValueError(f"neuron: got {neuron!r}, expected one of {known}, or a subclass of NeuronLayer")


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: got {value!r} ({type(value).__name__}), expected an int")
    if value < 1:
        raise ValueError(f"{name}: got {value}, expected at least 1")


def _check_counts(name: str, values: object, meaning: str) -> tuple[int, ...]:
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise TypeError(f"{name}: got {values!r} ({type(values).__name__}), expected a sequence of ints: {meaning}")
    for value in values:
        _check_count(name, value)
    return tuple(values)
