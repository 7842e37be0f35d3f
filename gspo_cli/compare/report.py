"""Writes a report: report.md, report.html, report.json and the figure of the first. Pure but for that."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from gspo_cli.compare import markdown, page
from gspo_cli.compare.figures import line_chart
from gspo_cli.compare.result import Comparison
from gspo_cli.run.files import make_folder, write_atomically

FIGURE = "held_out.svg"


def write_report(comparison: Comparison, folder: Path) -> list[Path]:
    """All files of the report, made in memory before the first is written. Raises UserError where one cannot
    be written."""
    arms = [arm.name for arm in comparison.arms]
    texts = {
        "report.md": markdown.text(comparison),
        "report.html": page.html(comparison),
        "report.json": json_text(comparison),
    }
    if comparison.charts:
        texts[FIGURE] = line_chart(comparison.charts[0], arms, alone=True) + "\n"
    make_folder(folder, "compare.folder")
    for name, text in texts.items():
        write_atomically(folder / name, text)
    if FIGURE not in texts:
        (folder / FIGURE).unlink(missing_ok=True)  # an earlier report's: beside this one it would lie
    return [folder / name for name in texts]


def json_text(comparison: Comparison) -> str:
    """The comparison as it is, keys sorted; numbers that are not finite become null."""
    return json.dumps(plain(comparison), indent=1, sort_keys=True, allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """Dataclasses, enums and collections as JSON has them."""
    if is_dataclass(value):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
