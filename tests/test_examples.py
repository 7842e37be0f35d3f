"""The examples run and do what they say."""

from __future__ import annotations

import runpy
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def test_one_iteration_learns_from_groups_with_different_rewards():
    path = EXAMPLES / "one_iteration.py"
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 150
    found = runpy.run_path(str(path))["main"]()
    assert 0 < found["reward"] < 1
    assert 0 < found["informative"] <= 16
    assert found["norm"] > 0
