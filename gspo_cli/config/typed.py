"""Settings as they are typed in a shell."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HYDRA_PLAIN = re.compile(r"[A-Za-z0-9_./+-]+")  # characters that an override accepts without quotes


def override(key: str, value: Any) -> str:
    """key=value as typed in a shell, quoted for Hydra where a text needs it."""
    value = str(value) if isinstance(value, Path) else value
    if isinstance(value, float):
        text = str(value)
    elif not isinstance(value, str):  # Hydra takes null, true and lists as JSON has them
        text = json.dumps(value, ensure_ascii=False)
    elif HYDRA_PLAIN.fullmatch(value):
        text = value
    else:
        text = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return shlex.quote(f"{key}={text}")


def allowing(keys: Sequence[str]) -> str:
    """compare.allow=[<keys>], or nothing where a key has what a shell or Hydra would read."""
    return f"compare.allow=[{','.join(keys)}]" if all(map(HYDRA_PLAIN.fullmatch, keys)) else ""
