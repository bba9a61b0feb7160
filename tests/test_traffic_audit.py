"""What the CUDA kernels read and write, counted under emulation at the paper's size (cuda_emulation/audit.py)."""

from __future__ import annotations

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


def test_traffic() -> None:
    """All limits at once, since the count takes long; with the whole table where one is passed."""
    from cuda_emulation import audit

    table = audit.measure()
    complaints = []
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
        if found[1] > again:
            complaints.append(f"{title}: {found[1]:.3f} bytes once more, expected at most {again}")
    assert not complaints, "\n".join([*complaints, "", *audit.lines(table)])
