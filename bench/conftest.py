"""What pytest-benchmark writes into a baseline: the bench's own header, without names of hosts and folders."""

from __future__ import annotations

from typing import Any

import pytest

from bench.environment import environment


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_generate_machine_info(config: pytest.Config) -> dict[str, Any]:
    return {key: value for key, value in environment().items() if key != "commit"}


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_generate_commit_info(config: pytest.Config) -> dict[str, Any]:
    return {"id": environment()["commit"]}
