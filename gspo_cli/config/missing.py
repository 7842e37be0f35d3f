"""The value of a field that the YAML of an option fills."""

from __future__ import annotations

from typing import Any

MISSING: Any = "???"  # OmegaConf's own; the schemas are read where OmegaConf is not installed, too
