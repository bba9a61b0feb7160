"""Files that the library writes (stc_cuda/_files.py)."""

from __future__ import annotations

import json
import math

import pytest

from stc_cuda._files import to_json


def refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON")


def test_numbers_that_json_has_not() -> None:
    given = {"psnr": [math.inf, 20.5], "loss": (math.nan, -math.inf), "count": 3, "name": "a", "best": None, "on": True}
    text = to_json(given).decode()
    assert text.endswith("}\n")
    found = json.loads(text, parse_constant=refuse)
    assert found == {
        "psnr": ["Infinity", 20.5],
        "loss": ["NaN", "-Infinity"],
        "count": 3,
        "name": "a",
        "best": None,
        "on": True,
    }
    assert float(found["psnr"][0]) == math.inf
    with pytest.raises(ValueError, match="Infinity is no JSON"):  # guards the test
        json.loads(json.dumps(given), parse_constant=refuse)
