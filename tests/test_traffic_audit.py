"""What the CUDA kernels read and write, counted under emulation at the paper's size (cuda_emulation/audit.py)."""

from __future__ import annotations

import pytest
from cuda_emulation import build

pytestmark = pytest.mark.emulated

# Bytes per neuron and step: first touches, and everything that is touched once more.
LIMITS = {
    "forward, inference": (8.2, 4.0),
    "forward, training": (12.3, 4.0),
    "backward, detached": (24.5, 20.0),
    "backward, attached": (24.5, 20.0),
}
# What no kernel can do without, of sequences of 4-byte numbers.
LEAST = {
    "forward, inference": {"current", "spikes"},
    "forward, training": {"current", "spikes", "u", "norm_stats"},
    "backward, detached": {"current", "u", "grad_spikes_out", "grad_current", "norm_stats"},
    "backward, attached": {"current", "u", "grad_spikes_out", "grad_current", "norm_stats"},
}


@pytest.fixture(scope="module")
def table() -> dict:
    if build.why_not():
        pytest.skip(str(build.why_not()))
    from cuda_emulation import audit

    return audit.measure()


@pytest.mark.parametrize("title", LIMITS)
def test_every_sequence_is_counted_once_and_whole(table: dict, title: str) -> None:
    """The guard of the limits below: a buffer that the audit does not know would escape them."""
    rows = {row.name: row for row in table[title] if row.kind == "sequence"}
    assert rows.keys() >= LEAST[title]
    for name, row in rows.items():
        whole = {"norm_stats": 3 * 2 * 8 / (16 * 32 * 32), "spike bits": 1 / 8, "gradients of both gates": 8.0}
        assert row.first == pytest.approx(whole.get(name, 4.0)), name
    if title.startswith("backward"):
        assert "gradients of both gates" in rows, "the workspace has other arrays now: see audit._classify"


@pytest.mark.parametrize("title", LIMITS)
def test_first_touches(table: dict, title: str) -> None:
    from cuda_emulation import audit

    assert audit.first_touches(table[title]) <= LIMITS[title][0], "\n".join(audit.lines({title: table[title]}))


@pytest.mark.parametrize("title", LIMITS)
def test_rereads(table: dict, title: str) -> None:
    from cuda_emulation import audit

    assert audit.rereads(table[title]) <= LIMITS[title][1], "\n".join(audit.lines({title: table[title]}))


def test_states_are_touched_once_a_sequence(table: dict) -> None:
    for title, rows in table.items():
        for row in rows:
            if row.kind == "state":
                assert row.first == pytest.approx(4 / 3), f"{title}: {row.name}"
                assert row.again == 0, f"{title}: {row.name}"
