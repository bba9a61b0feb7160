"""Faults planted in the text of the kernels, one at a time: the comparisons of this suite find each of them.

A fault is compiled from a copy of csrc/ that is cut down to one size of the persistent kernels, which takes seconds,
and runs in a process of its own.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import oracle
import pytest
import torch
from cuda_emulation import build
from oracle import Case, make_problem
from parity import check_float32, check_float64, listed

pytestmark = pytest.mark.emulated

TESTS = Path(__file__).resolve().parent
CSRC = build.ROOT / "csrc"


@dataclasses.dataclass(frozen=True)
class Fault:
    """Replacements of text, each wherever it occurs in csrc/; a case of 16 or 8 channels a group shows them."""

    name: str
    edits: tuple[tuple[str, str], ...]
    channels: int = 16
    mode: str = "plain"


def fault(name: str, *edits: tuple[str, str], **options: object) -> Fault:
    return Fault(name, edits, **options)  # type: ignore[arg-type]


FAULTS = [
    # Layout of the matrix fragments.
    fault(
        "registers y and z of the gate weights swapped",
        ("const int path = r % 2, row", "const int path = r / 2, row"),
        ("+ e + (r / 2) * 8", "+ e + (r % 2) * 8"),
    ),
    fault(
        "register z of z' is register x",
        ("split_pair(upper.z, upper.w, x[2])", "split_pair(upper.x, upper.y, x[2])"),
    ),
    fault(
        "rows of the two pathways swapped",
        ("(path ? in.spatial_weight : in.temporal_weight)", "(path ? in.temporal_weight : in.spatial_weight)"),
    ),
    fault("pixels of a tile in plain order", ("4 * (column / 2) + column % 2", "column")),
    fault("second tap of a pair forgotten", ("Product::tap(s, 8 * half)", "Product::tap(s, 0)"), channels=8),
    fault("second tap in place of the first", ("? 0 : half()", "? 0 : 1"), channels=8),
    fault("halves of the channels swapped in the map", ("? half() * plane_", "? (1 - half()) * plane_")),
    fault("n tiles swapped in ldmatrix", ("block_.lane / 16 * 2", "2 - block_.lane / 16 * 2")),
    fault(
        "chunks of the map read without the swizzle",
        ("chunks_ + swizzled(origin + offset)", "chunks_ + origin + offset"),
    ),
    fault("small terms of the weights taken twice", ("next ? term : 0", "term")),
    # Bits.
    fault("ballot read in the reverse order", ("votes >> quad", "votes >> (3 - quad)")),
    fault("pixels of a thread in the reverse order", ("fired >> j & 1u", "fired >> (3 - j) & 1u")),
    fault("second byte of channels lost", ("Channels == 16 ? low >> 8", "Channels == 16 ? low")),
    # Edges of the map.
    fault("halo off by one column", ("x(i) + row + kPad", "x(i) + row + kPad - 1")),
    fault("halo off by one row", ("(y(i) + kPad) * stride", "(y(i) + kPad - 1) * stride")),
    fault(
        "ragged pixels in the statistics of the current",
        ("if (j < block.left(k / kTiles)) {\n            const float d", "{\n            const float d"),
    ),
    fault("ragged pixels in the means of the gates", ("sums.mean[kTemporal] += a;", "}{ sums.mean[kTemporal] += a;")),
    fault("ragged pixels spread into z'", ("if (j >= block.left(i)) continue;", "")),
    fault("general kernels: zeros around the map", ("launch.flat(zero<T>, count, padded, count);", ""), channels=3),
    fault("general kernels: weights of the channel before", ("shared_ + c % 2 * Count; }", "shared_; }"), channels=3),
    fault(
        "general kernels: first part of a channel missing",
        ("int part = 0; part < parts", "int part = 1; part < parts"),
        channels=3,
    ),
    fault("general kernels: taps not turned around", ("Transposed ? taps - 1 - tap : tap", "tap"), channels=3),
    fault("general kernels: one path missing in a transpose", ("weight[Chunk + j] * input[p][1][kx]", "0"), channels=3),
    fault(
        "general kernels: second map missed in the weight gradient",
        ("here_ += sample_size - cut.lines_of_map * WeightTiles::kLine;", ""),
        channels=3,
    ),
    # Sums.
    fault(
        "first warp missing in a sum",
        ("for (int w = 0; w < int(blockDim.x) / 32", "for (int w = 1; w < int(blockDim.x) / 32"),
    ),
    fault("half of a warp missing in the statistics", ("merge_lanes(16)", "merge_lanes(8)")),
    fault("general kernels: half of a warp missing", ("int distance = 16", "int distance = 8"), channels=3),
    fault("last warp missing in the statistics", ("lane < int(blockDim.x / 32)", "lane < int(blockDim.x / 32) - 1")),
    fault("spreads merged as if of equal size", ("__fdividef(other_count, total)", "0.5f")),
    fault("distance of two means forgotten", ("+ difference * difference * share * (1.f - share)", "")),
    fault("two quads missing in a channel's sum", ("sums[k] += __shfl_xor_sync(0xffffffffu, sums[k], 2);", "")),
    fault("last split of the weight gradient missing", ("k < count; ++k) total", "k < count - 1; ++k) total")),
    fault("last part of a block's weight gradient missing", ("p < Product::kParts - 1", "p < Product::kParts - 2")),
    fault(
        "general kernels: first warp missing",
        ("int w = 0; w < kGroupWarps", "int w = 1; w < kGroupWarps"),
        channels=3,
    ),
    # Precision.
    fault("low term of the gate weights missing", ("__float2half_rn(value - __half2float(high))", "__half()")),
    fault(
        "third bf16 term of z' missing in the weight gradient",
        ("term = Product::kTerms - 1", "term = Product::kTerms - 2"),
    ),
    fault(
        "last bf16 products of the transposed convolutions missing",
        ("total = Transposed::kTerms - 1", "total = Transposed::kTerms - 2"),
    ),
    # Equations.
    fault("taps of the transposed convolutions not reversed", ("Product::kTaps - 1 - tap]", "tap]")),
    fault("kernel row ignored in the weight gradient", ("tile % Kernel * stride", "0 * stride")),
    fault("sign of the gradient through the reset", (": -k.threshold) * grad_v", ": k.threshold) * grad_v")),
    fault("eps forgotten", ("+ float(p.in.eps)", "")),
    fault("upstream gradient of v_seq forgotten", ("if (p.grad_v_seq_out.data)", "if (false)")),
    fault(
        "s' of the step after forgotten",
        ("= component_of(grad_s, j) * component_of(slopes, j)", "= 0.f * component_of(slopes, j)"),
    ),
    # Copies of what is read more than once.
    fault("current of the step before", ("current.fetch(t + 1)", "current.fetch(t)")),
    fault("current fetched once in the backward pass", ("if (t > 0) current.fetch(t - 1);", "")),
    fault(
        "u of the step itself kept",
        ("if (t > 0) return load(p.potentials + unit(t - 1)", "if (t > 0) return load(p.potentials + unit(t)"),
    ),
    # Memory, which only AddressSanitizer sees in what torch allocates.
    fault(
        "general kernels: one thread too many",
        ("if (i >= geo.state) return;", "if (i > geo.state) return;"),
        channels=3,
        mode="asan",
    ),
]


def cases(channels: int) -> list[Case]:
    """A map of two runs of pixels a row, the second of them ragged, in both ways of resetting and detaching."""
    case = Case(seed=951, in_group=channels, kernel=5, height=7, width=18, steps=3, samples=2, gate_gain=1.0, drive=0.3)
    return [case, dataclasses.replace(case, seed=952, v_reset=-0.3, gradient_detach=True, samples=1)]


def compare(channels: int) -> None:
    """Raises what the suite's comparisons raise, in the process of a fault."""
    from cuda_emulation import backend
    from cuda_emulation.control import Order

    backend.load().set_order(Order.LAST_WARP_FIRST)  # as far from the order in the source as can be
    for case in cases(channels):
        if channels == 3:
            complaints, _ = check_float64(make_problem(case, torch.float64), oracle.EMULATED)
            assert not complaints, listed(complaints)
        else:
            report = check_float32(make_problem(case, torch.float32), oracle.EMULATED)
            assert not report.skipped_gradients, "spikes flipped"
            assert not report.over_twice_eager
            report.check()


def included(source: Path, seen: set[Path]) -> set[Path]:
    """The source and what it includes of the project."""
    if source not in seen:
        seen.add(source)
        for name in re.findall(r'^#include "(.*)"', source.read_text(), flags=re.MULTILINE):
            if (path := (source.parent / name).resolve()).is_relative_to(CSRC) and path.exists():
                included(path, seen)
    return seen


def compile_fault(planted: Fault, folder: Path) -> Path:
    """A library of the kernels with the fault, compiled in ``folder``."""
    from cuda_emulation import backend

    shutil.copytree(CSRC, folder / "csrc")
    changed = set()

    def edit(old: str, new: str) -> None:
        files = [f for f in (*CSRC.glob("*.h"), *(CSRC / "cuda").iterdir()) if f.is_file()]
        found = [f for f in files if old in f.read_text()]
        assert found, f"csrc/ has no {old!r} any more: write {planted.name!r} for what stands there now"
        for file in found:
            copy = folder / file.relative_to(build.ROOT)
            copy.write_text(copy.read_text().replace(old, new))
            changed.add(file)

    # One size, one run of 16 pixels a warp.
    size = 8 if planted.channels == 8 else 16
    edit(f"Constant<{24 - size}>", f"Constant<{size}>")
    for number, only in ((3, 5), (2, 1), (4, 1)):
        edit(f"Constant<{number}>", f"Constant<{only}>")
    for old, new in planted.edits:
        edit(old, new)

    sources = sorted((CSRC / "cuda").glob("*.cu"))
    kernels = [folder / s.relative_to(build.ROOT) if included(s, set()) & changed else s for s in sources]
    return backend.compile_kernels(planted.mode, folder / "csrc", f"fault-{folder.name}", kernels)


def outcome(planted: Fault, folder: Path) -> str:
    """What the comparisons say: nothing, or why they failed."""
    library = compile_fault(planted, folder)
    done = subprocess.run(
        [sys.executable, "-c", f"import test_planted_faults as t; t.compare({planted.channels})"],
        cwd=TESTS,
        env={**os.environ, **build.environment(planted.mode), "STC_EMULATION_LIBRARY": str(library)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    if done.returncode == 0:
        return ""
    said = re.findall(r"^(?:AssertionError|RuntimeError: stc_cuda: a launch).*", done.stderr, flags=re.MULTILINE)
    assert said, f"the process of {planted.name!r} failed by itself:\n{done.stderr[-4000:]}"
    return said[-1]


@pytest.fixture
def folder(request: pytest.FixtureRequest) -> Path:
    """Where the sources of a fault lie, in the same place each time, so that what is compiled can be found again."""
    path = build.BUILD / "faults" / re.sub(r"\W+", "-", request.node.callspec.id)
    shutil.rmtree(path, ignore_errors=True)
    return path


@pytest.mark.parametrize("channels", [16, 8, 3])
def test_without_a_fault_nothing_is_found(channels: int, folder: Path) -> None:
    assert not outcome(Fault("no fault", (), channels), folder)


@pytest.mark.parametrize("planted", FAULTS, ids=lambda planted: planted.name)
def test_fault_is_found(planted: Fault, folder: Path, record_property: object) -> None:
    said = outcome(planted, folder)
    record_property("said", said)  # type: ignore[operator]
    assert said, "no comparison noticed it"
