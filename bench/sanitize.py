"""``python -m bench.sanitize``: every CUDA kernel once on small shapes, for compute-sanitizer to watch.

Run with PYTORCH_NO_CUDA_MEMORY_CACHING=1, so that every tensor is an allocation of its own: an access past the end of
one then lies outside of all.
"""

from __future__ import annotations

import itertools

import torch

import stc_cuda

# channels a group, kernel size, height, width: runs of one, two and four a warp, ragged rows, and general kernels
SHAPES = ((16, 5, 9, 16), (16, 3, 7, 21), (8, 5, 20, 13), (8, 3, 3, 5), (16, 5, 32, 32), (5, 3, 6, 7))


def run(
    in_group: int, kernel: int, height: int, width: int, dtype: torch.dtype, detach: bool, device: str = "cuda"
) -> int:
    """Forward and backward, with all outputs wanted and all inputs given; the number of gradients that came."""
    generator = torch.Generator().manual_seed(0)

    state_dtype = torch.float64 if dtype == torch.float64 else torch.float32

    def normal(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        # made on the CPU, so that the first kernel that touches an input is one of ours
        return torch.randn(shape, generator=generator).to(device, dtype).requires_grad_()

    groups, steps, samples = 2, 2, 1
    channels = groups * in_group
    state = (samples, channels, height, width)
    norms = [(normal(channels), normal(channels)) for _ in range(3)]
    weights = [normal(channels, in_group, kernel, kernel) for _ in range(2)]
    current, v = normal(steps, *state), normal(*state, dtype=state_dtype)
    spikes = (torch.rand(state, generator=generator) < 0.3).to(device, dtype).requires_grad_()
    outputs = stc_cuda.stc_lif(
        current,
        *weights,
        groups=groups,
        current_norm=norms[0],
        temporal_norm=norms[1],
        spatial_norm=norms[2],
        v=v,
        spikes=spikes,
        gradient_detach=detach,
        store_v_seq=True,
    )
    upstream = [torch.randn(x.shape, generator=generator).to(x) for x in outputs]
    inputs = [current, *weights, v, spikes, *(x for norm in norms for x in norm)]
    grads = [x for x in torch.autograd.grad(outputs, inputs, upstream, allow_unused=True) if x is not None]
    for grad in grads:
        if not bool(grad.cpu().isfinite().all()):
            raise RuntimeError(f"{in_group} channels a group, K={kernel}, {height}x{width}: a gradient is not finite")
    packed = stc_cuda.stc_lif(current.detach(), *(w.detach() for w in weights), groups=groups, packed_spikes=True)[0]
    packed.cpu()
    return len(grads)


def main() -> None:
    for shape, detach in itertools.product(SHAPES, (False, True)):
        run(*shape, torch.float32, detach)
    run(5, 3, 6, 7, torch.float64, False)
    for shape, dtype in itertools.product(SHAPES[:2], (torch.float16, torch.bfloat16)):
        run(*shape, dtype, False)
    torch.cuda.synchronize()
    print(f"ran {2 * len(SHAPES) + 5} calls, forward and backward")


if __name__ == "__main__":
    main()
