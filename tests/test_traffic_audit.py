"""What the CUDA kernels read and write, counted under emulation at the paper's size (cuda_emulation/audit.py)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

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
    "forward, training": {"current", "spikes", "potentials", "norm_stats"},
    "backward, detached": {"current", "potentials", "grad_spikes_out", "grad_current", "norm_stats"},
    "backward, attached": {"current", "potentials", "grad_spikes_out", "grad_current", "norm_stats"},
}
# By sequence, where it is not one number of 4 bytes a neuron and step.
WHOLE = {"norm_stats": 3 * 2 * 8 / (16 * 32 * 32), "spike bits": 1 / 8, "gradients of the gates": 8.0}


ROOT = Path(__file__).parents[1]


def documented(kilobytes: int) -> dict[str, tuple[float, float]]:
    """First touches and those again by pass, of the table in docs/performance.md."""
    column = {227: 2, 163: 3, 99: 4}[kilobytes]
    rows = re.findall(r"^\| ((?:for|back)ward, \w+):(.*)\|$", (ROOT / "docs" / "performance.md").read_text(), re.M)
    cells = {title: rest.split("|") for title, rest in rows}
    return {title: (float(each[1]), float(each[column])) for title, each in cells.items()}


@pytest.mark.parametrize("kilobytes", [227, 163, 99])
def test_traffic(kilobytes: int) -> None:
    """All limits at once, since the count takes long; with the whole table where one is passed. The limits are those
    of 227 KB; elsewhere the table of the documents is one."""
    from cuda_emulation import audit
    from cuda_emulation.backend import load

    emulation = load()
    emulation.set_shared_limit(kilobytes * 1024)
    try:
        table = audit.measure()
    finally:
        emulation.set_shared_limit(227 * 1024)
    complaints = []
    told = documented(kilobytes)
    assert told.keys() == LIMITS.keys()
    for title, (first, again) in LIMITS.items():
        rows = {row.name: row for row in table[title] if row.kind == "sequence"}
        # The guard of the limits: a buffer that the audit does not know would escape them.
        least = LEAST[title] | ({"gradients of the gates"} if title.startswith("backward") else set())
        if not rows.keys() >= least:
            complaints.append(f"{title}: no count of {least - rows.keys()}; see audit._classify")
        for name, row in rows.items():
            if row.first != pytest.approx(WHOLE.get(name, 4.0)):
                complaints.append(f"{title}: {name}: {row.first} bytes were touched, expected {WHOLE.get(name, 4.0)}")
        for row in table[title]:
            if row.kind == "state" and (row.first != pytest.approx(4 / 3) or row.again):
                complaints.append(f"{title}: {row.name} is touched more than once a sequence")
        found = audit.first_touches(table[title]), audit.rereads(table[title])
        if found[0] > first:
            complaints.append(f"{title}: {found[0]:.3f} bytes, expected at most {first}")
        if kilobytes == 227 and found[1] > again:
            complaints.append(f"{title}: {found[1]:.3f} bytes once more, expected at most {again}")
        if found != pytest.approx(told[title], abs=0.01):
            complaints.append(
                f"{title}: {found[0]:.3f} and {found[1]:.3f} bytes, docs/performance.md says {told[title]}"
            )
    assert not complaints, "\n".join([*complaints, "", *audit.lines(table)])
