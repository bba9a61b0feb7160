"""Spikes as bits: uint8 ``[..., groups, H, W, B]``, bit ``c % 8`` of byte ``c // 8`` is channel ``c`` of the group."""

from __future__ import annotations

import torch
from torch import Tensor


def pack_spikes(spikes: Tensor, groups: int) -> Tensor:
    """Packs 0/1 spikes ``[..., C, H, W]`` into uint8 ``[..., groups, H, W, ceil(C/groups/8)]``."""
    *lead, channels, height, width = spikes.shape
    in_group = channels // groups
    grouped = spikes.reshape(*lead, groups, in_group, height, width).movedim(-3, -1).to(torch.uint8)
    grouped = torch.nn.functional.pad(grouped, (0, -in_group % 8)).unflatten(-1, (-1, 8))
    weights = (2 ** torch.arange(8, device=spikes.device)).to(torch.uint8)
    return (grouped * weights).sum(-1, dtype=torch.uint8)


def unpack_spikes(packed: Tensor, channels: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Spikes from bits, the inverse of ``packed_spikes=True``.

    Args:
        packed: uint8 ``[..., groups, H, W, ceil(C/groups/8)]``.
        channels: C, the number of channels of all groups together.
        dtype: of the result.

    Returns:
        0/1 spikes ``[..., C, H, W]``.

    Raises:
        TypeError: ``packed`` is not uint8.
        ValueError: its shape does not fit ``channels``.
    """
    if packed.dtype != torch.uint8:
        raise TypeError(f"packed: got dtype {packed.dtype}, expected torch.uint8")
    if packed.dim() < 4 or channels % packed.shape[-4] or (channels // packed.shape[-4] + 7) // 8 != packed.shape[-1]:
        raise ValueError(
            f"packed: got shape {list(packed.shape)} for {channels} channels, "
            "expected [..., groups, H, W, ceil(channels/groups/8)]"
        )
    in_group = channels // packed.shape[-4]
    shifts = torch.arange(8, device=packed.device, dtype=torch.uint8)
    bits = (packed.unsqueeze(-1) >> shifts) & 1
    bits = bits.flatten(-2)[..., :in_group].movedim(-1, -3)
    return bits.flatten(-4, -3).to(dtype)
