"""Metrics added up over batches and processes, and LPIPS against its authors' package."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from torch import Tensor, nn

from stc_cuda import metrics
from stc_cuda.metrics import LPIPS, METRICS, VideoMetrics
from stc_cuda.metrics.video import _CHUNK

B, T = 11, 3
GENERATOR = torch.Generator().manual_seed(0)
TRUE = torch.rand(B, T, 2, 8, 9, generator=GENERATOR)
PRED = TRUE + 0.3 * torch.randn(TRUE.shape, generator=GENERATOR)


def whole() -> VideoMetrics:
    accumulated = VideoMetrics(T)
    accumulated.update(PRED, TRUE)
    return accumulated


def test_equals_the_functions() -> None:
    found, per_frame = whole().compute(), whole().compute(per_frame=True)
    assert tuple(found) == tuple(per_frame) == METRICS
    assert metrics.evaluate(PRED, TRUE) == found
    for name in METRICS:
        function = getattr(metrics, name)
        assert isinstance(found[name], float)
        assert found[name] == pytest.approx(float(function(PRED, TRUE)), rel=1e-12)
        torch.testing.assert_close(per_frame[name], function(PRED, TRUE, per_frame=True), rtol=1e-12, atol=0)


@pytest.mark.parametrize("sizes", [(1,) * B, (4, 7), (10, 1), (3, 3, 3, 2)])
def test_batches_do_not_matter(sizes: tuple[int, ...]) -> None:
    accumulated = VideoMetrics(T)
    for pred, true in zip(PRED.split(sizes), TRUE.split(sizes), strict=True):
        accumulated.update(pred, true)
    assert accumulated.samples == B
    torch.testing.assert_close(accumulated.state, whole().state, rtol=1e-12, atol=0)


def test_chunks_do_not_matter() -> None:
    pred, true = (video.repeat(1, 4, 1, 8, 8) for video in (PRED, TRUE))
    assert pred[0].numel() * 2 < _CHUNK < pred.numel()  # chunks of two or more, and a rest
    together = metrics.evaluate(pred, true)
    alone = [metrics.evaluate(pred[n : n + 1], true[n : n + 1]) for n in range(B)]
    for name in set(METRICS) - {"rmse"}:
        assert together[name] == pytest.approx(sum(one[name] for one in alone) / B, rel=1e-12)


def test_states_of_processes_add_up() -> None:
    ranks = [VideoMetrics(T) for _ in range(3)]
    for rank, accumulated in enumerate(ranks):
        accumulated.update(PRED[rank::3], TRUE[rank::3])
    reduced = VideoMetrics(T)
    reduced.state = torch.stack([rank.state for rank in ranks]).sum(0)  # what all_reduce does
    merged = VideoMetrics(T)
    for rank in ranks:
        merged.merge(rank)
    for accumulated in (reduced, merged):
        torch.testing.assert_close(accumulated.state, whole().state, rtol=1e-12, atol=0)
        assert accumulated.samples == B
    merged.reset()
    assert merged.samples == 0


def test_chosen_metrics_and_no_needless_work() -> None:
    small = torch.zeros(2, 1, 1, 4, 4)  # too small for SSIM, which is not asked for
    assert metrics.evaluate(small, small, ("rmse", "mae")) == {"rmse": 0, "mae": 0}
    assert tuple(VideoMetrics(1, ("rmse",)).state.shape) == (2, 1)
    one = VideoMetrics(1, ("mse",))
    one.update(small + 0.5, small)
    assert one.compute() == {"mse": 4}


def test_published_ssim_on_smooth_frames() -> None:
    # As scikit-image computes it for OpenSTL: frames transposed, channels last, float32, the range told to be 2.
    y, x = torch.meshgrid(torch.linspace(0, 3, 64), torch.linspace(0, 3, 64), indexing="ij")
    true = (0.5 + 0.5 * torch.sin(x * torch.arange(1, 5).reshape(2, 2, 1, 1, 1) + y)).expand(2, 2, 1, 64, 64)
    pred = (true.roll(1, -1) + 0.02).contiguous()
    frames = zip(pred.clamp(0, 1).flatten(0, 1).numpy(), true.flatten(0, 1).numpy(), strict=True)
    expected = [
        structural_similarity(p.swapaxes(0, 2), t.swapaxes(0, 2), channel_axis=2, data_range=2) for p, t in frames
    ]
    assert metrics.evaluate(pred, true)["ssim_openstl"] == pytest.approx(np.mean(expected), abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"out_frames": 0}, ValueError, "out_frames: got 0, expected at least 1"),
        ({"out_frames": 2.0}, TypeError, "out_frames: got 2.0"),
        ({"names": ("mse", "snr")}, ValueError, "names: got .*'snr'.*, expected different ones of 'mse'"),
        ({"names": ("mse", "mse")}, ValueError, "names: got .*, expected different ones"),
        ({"names": "mse"}, ValueError, "names: got 'mse', expected"),
        ({"names": ()}, ValueError, r"names: got \(\), expected"),
        ({"names": ("lpips",)}, ValueError, "lpips: got no lpips for names"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        VideoMetrics(**{"out_frames": T, **arguments})


def test_bad_batches_leave_the_state() -> None:
    accumulated = VideoMetrics(T)
    with pytest.raises(ValueError, match="got no samples, expected at least one; call update"):
        accumulated.compute()
    for pred, true, message in (
        (PRED[:, :2], TRUE[:, :2], "pred: got 2 frames, expected out_frames = 3"),
        (PRED, TRUE[:2], "true: got shape"),
        (PRED[..., :5], TRUE[..., :5], "the window of SSIM"),
    ):
        with pytest.raises(ValueError, match=message):
            accumulated.update(pred, true)
    with pytest.raises(ValueError, match=r"other: got \('mse',\) of 3 frames, expected \('mse', 'mae'"):
        accumulated.merge(VideoMetrics(T, ("mse",)))
    assert not accumulated.state.any()


# --- LPIPS ----------------------------------------------------------------------------------------------------------


def alexnet_features() -> nn.Sequential:
    """torchvision's, written out."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(), nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
    )  # fmt: skip


@pytest.fixture(scope="module")
def features() -> nn.Sequential:
    torch.manual_seed(0)
    return alexnet_features().requires_grad_(False)


@pytest.fixture(scope="module")
def files(features: nn.Sequential, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random weights in files of the published layouts."""
    folder = tmp_path_factory.mktemp("lpips")
    backbone = {f"features.{key}": value for key, value in features.state_dict().items()}
    torch.save({**backbone, "classifier.1.weight": torch.zeros(2, 2)}, folder / "alexnet.pth")
    channels = (64, 192, 384, 256, 256)
    heads = {f"lin{i}.model.1.weight": torch.rand(1, count, 1, 1) for i, count in enumerate(channels)}
    torch.save(heads, folder / "alex.pth")
    return {"backbone": folder / "alexnet.pth", "heads": folder / "alex.pth"}


@pytest.fixture
def package_lpips(features: nn.Sequential, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The authors' network on the same random AlexNet; torchvision, which it gets that from, is not needed."""
    if importlib.util.find_spec("lpips") is None:
        pytest.skip("needs the package lpips: pip install --no-deps lpips")
    torchvision = types.ModuleType("torchvision")
    torchvision.models = types.SimpleNamespace(  # type: ignore[attr-defined]
        alexnet=lambda pretrained: types.SimpleNamespace(features=features)
    )
    before = set(sys.modules)
    monkeypatch.setitem(sys.modules, "torchvision", torchvision)
    import lpips

    yield lpips.LPIPS(net="alex", verbose=False)
    for name in set(sys.modules) - before:
        if name.split(".")[0] == "lpips":
            del sys.modules[name]


def pictures(channels: int, size: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(channels)
    true = torch.rand(2, 3, channels, size, size, generator=generator)
    return true + 0.2 * torch.randn(true.shape, generator=generator), true


@pytest.mark.parametrize("channels", [1, 3])
def test_lpips_equals_the_package(package_lpips: Any, files: dict[str, Path], channels: int) -> None:
    pred, true = pictures(channels)
    found = LPIPS(files["backbone"])(pred.double(), true.double())
    p, t = (video.flatten(0, 1).expand(-1, 3, -1, -1) for video in (pred.clamp(0, 1), true))
    expected = package_lpips(p * 2 - 1, t * 2 - 1).flatten().unflatten(0, (2, 3))
    assert found.dtype == torch.float64
    assert found.min() > 1e-4
    torch.testing.assert_close(found.float(), expected, rtol=1e-4, atol=1e-7)


def test_lpips_among_the_others(files: dict[str, Path]) -> None:
    lpips = LPIPS(**files)
    pred, true = pictures(1)
    assert not list(lpips.parameters())
    assert not lpips(true, true).any()
    values = lpips(pred.requires_grad_(), true)
    assert not values.requires_grad
    found = metrics.evaluate(pred, true, ("mse", "lpips"), lpips=lpips)
    assert found["lpips"] == pytest.approx(float(values.mean()))
    accumulated = VideoMetrics(3, ("lpips",), lpips=lpips)
    for n in range(2):
        accumulated.update(pred[n : n + 1], true[n : n + 1])
    torch.testing.assert_close(accumulated.compute(per_frame=True)["lpips"], values.mean(0), rtol=1e-5, atol=0)
    with pytest.raises(ValueError, match="lpips: got lpips for names"):
        VideoMetrics(3, lpips=lpips)


def test_lpips_errors(files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lpips = LPIPS(**files)
    with pytest.raises(ValueError, match="pred: got 2 channels, expected 3 or 1"):
        lpips(*pictures(2))
    with pytest.raises(ValueError, match="pred: got frames of 30 x 30 pixels, expected at least 31 x 31"):
        lpips(*pictures(1, 30))
    assert lpips(*pictures(1, 31)).shape == (2, 3)
    with pytest.raises(
        FileNotFoundError, match=r"backbone: .*none\.pth is not a file; expected .*alexnet-owt-7be5be79"
    ):
        LPIPS(tmp_path / "none.pth", files["heads"])
    with pytest.raises(
        ValueError, match=r"backbone: .*alex\.pth has nothing at 'features\.0\.weight', expected \[64, 3"
    ):
        LPIPS(files["heads"], files["heads"])
    torch.save({"lin0.model.1.weight": torch.zeros(1, 32, 1, 1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"heads: .*other\.pth has \[1, 32, 1, 1\] at 'lin0.*expected \[1, 64, 1, 1\]"):
        LPIPS(files["backbone"], tmp_path / "other.pth")
    for content in (b"", b"no weights", files["heads"].read_bytes()[:500]):
        (tmp_path / "broken.pth").write_bytes(content)
        with pytest.raises(ValueError, match=r"heads: .*broken\.pth could not be read as LPIPS's weights"):
            LPIPS(files["backbone"], tmp_path / "broken.pth")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install --no-deps lpips"):
        LPIPS(files["backbone"])
