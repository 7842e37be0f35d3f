"""The real pretrained model of the tests: fetched once for this user, as `make smollm2` does."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from gspo_cli.user_cache import fetched_model
from tests.support.command_line import ROOT

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
FOLDER = fetched_model(HUB_ID)  # read at import: later tests have a cache folder of their own


def fetched() -> Path:
    """The model's folder; skips the test with the reason where the model cannot be had."""
    FOLDER.parent.mkdir(parents=True, exist_ok=True)
    with (FOLDER.parent / ".fetching").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of the workers of a test run, one fetches
        if not (FOLDER / "config.json").is_file():
            command = [sys.executable, str(ROOT / "scripts/fetch_smollm2.py"), "--folder", str(FOLDER)]
            run = subprocess.run(command, capture_output=True, text=True)
            if run.returncode:
                pytest.skip(f"SmolLM2 cannot be fetched: {(run.stderr.strip() or 'no output')[-300:]}")
    return FOLDER
