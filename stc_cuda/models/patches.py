"""Frames cut into patches: space traded for channels, in OpenSTL's channel order."""

from __future__ import annotations

from torch import Tensor


def frames_to_patches(frames: Tensor, patch_size: int) -> Tensor:
    """Folds every ``p x p`` square of pixels into channels.

    Channel ``(row * p + column) * C + c`` of the result is channel ``c`` of that pixel of the square: the order of
    OpenSTL's patches, which differs from :func:`torch.nn.functional.pixel_unshuffle` for more than one channel.

    Args:
        frames: ``[..., C, H, W]``, H and W divisible by ``patch_size``; any dtype.
        patch_size: p, in pixels.

    Returns:
        ``[..., p * p * C, H/p, W/p]``.

    Raises:
        ValueError: H or W is not a multiple of ``patch_size``, or ``frames`` has fewer than 3 dimensions.
    """
    _check_rank("frames", frames)
    height, width = frames.shape[-2:]
    if height % patch_size or width % patch_size:
        raise ValueError(f"patch_size: got {patch_size}, expected a divisor of the frame's {height} x {width} pixels")
    squares = frames.unflatten(-1, (-1, patch_size)).unflatten(-3, (-1, patch_size))  # ... C, H/p, p, W/p, p
    return squares.movedim((-3, -1), (-5, -4)).flatten(-5, -3)


def patches_to_frames(patches: Tensor, patch_size: int) -> Tensor:
    """The inverse of :func:`frames_to_patches`: ``[..., p * p * C, H/p, W/p] -> [..., C, H, W]``.

    Raises:
        ValueError: the channels are not a multiple of ``patch_size ** 2``, or ``patches`` has fewer than 3 dimensions.
    """
    _check_rank("patches", patches)
    channels = patches.shape[-3]
    if channels % patch_size**2:
        raise ValueError(f"patch_size: got {patch_size}, expected its square to divide the {channels} channels")
    squares = patches.unflatten(-3, (patch_size, patch_size, -1))  # ... p, p, C, H/p, W/p
    return squares.movedim((-5, -4), (-3, -1)).flatten(-2, -1).flatten(-3, -2)


def _check_rank(name: str, tensor: Tensor) -> None:
    if tensor.dim() < 3:
        raise ValueError(f"{name}: got shape {list(tensor.shape)}, expected at least 3 dimensions: [..., C, H, W]")
