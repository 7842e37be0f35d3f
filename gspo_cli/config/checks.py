"""Range checks whose messages name the key and the fix."""

from __future__ import annotations

import math
import re
from typing import Any

from gspo_cli.errors import UserError

NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")


def require(condition: bool, message: str) -> None:
    """Raise UserError(message) unless `condition` holds."""
    if not condition:
        raise UserError(message)


def require_name(key: str, value: Any) -> None:
    """Raise UserError unless `value` can be the name of a folder: names become parts of paths."""
    found = isinstance(value, str) and NAME.fullmatch(value) is not None
    require(found, f"{key}={value}: cannot be part of a folder's name; use letters, digits, dots and - + _")


def folder_name(text: Any) -> str:
    """`text` as the name of a folder, for a name that is refused once the configuration is checked."""
    return re.sub(r"[^\w.+-]", "_", str(text)).lstrip(".")


def require_positive(group: str, config: Any, *names: str) -> None:
    """Each named field is a finite number above zero."""
    for name in names:
        value = getattr(config, name)
        require(
            math.isfinite(value) and value > 0,
            f"{group}.{name}={value}: must be above 0; give a positive number",
        )


def require_not_negative(group: str, config: Any, *names: str) -> None:
    """Each named field is a finite number of at least zero."""
    for name in names:
        value = getattr(config, name)
        require(
            math.isfinite(value) and value >= 0,
            f"{group}.{name}={value}: must not be negative; give 0 or more",
        )


def require_fraction(group: str, config: Any, *names: str) -> None:
    """Each named field lies in [0, 1]."""
    for name in names:
        value = getattr(config, name)
        require(0 <= value <= 1, f"{group}.{name}={value}: must be between 0 and 1")
