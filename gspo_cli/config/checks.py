"""Range checks whose messages name the key and the fix."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Any

from gspo_cli.errors import UserError

NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")
LARGEST = 1e9  # no setting has a use above it


def require(condition: bool, message: str) -> None:
    """Raise UserError(message) unless `condition` holds."""
    if not condition:
        raise UserError(message)


def override_key(text: str) -> str:
    """The key that an override sets, adds or deletes."""
    return text.lstrip("+~").partition("=")[0]


def require_path(key: str, path: str | Path) -> None:
    """Raise UserError unless `path` can be that of a file, which need not be there."""
    path = str(path)
    require(path.strip() != "", f"{key}={path!r}: is empty, which would mean the current folder; give a path")
    try:
        os.stat(Path(path).expanduser())
    except (OSError, ValueError, RuntimeError) as error:  # the last: ~ of an unknown user
        known = isinstance(error, OSError) and error.errno not in (errno.ENAMETOOLONG, errno.ELOOP)
        reason = error.strerror if isinstance(error, OSError) else str(error)
        short = path if len(path) <= 80 else f"{path[:80]}..."
        require(known, f"{key}={short}: cannot be a path ({reason}); give another one")


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
            0 < value <= LARGEST,
            f"{group}.{name}={value}: must be above 0 and at most {LARGEST:g}; give {_like(config, name)}",
        )


def require_not_negative(group: str, config: Any, *names: str) -> None:
    """Each named field is a finite number of at least zero."""
    for name in names:
        value = getattr(config, name)
        require(
            0 <= value <= LARGEST,
            f"{group}.{name}={value}: must be 0 or more and at most {LARGEST:g}; give {_like(config, name)}",
        )


def require_at_most(group: str, config: Any, **limits: float) -> None:
    """Each named field is at most its limit, above which it has no use."""
    for name, limit in limits.items():
        value = getattr(config, name)
        fix = f"give at most {limit:g}, such as {_like(config, name)}"
        require(value <= limit, f"{group}.{name}={value}: is far too large; {fix}")


def require_fraction(group: str, config: Any, *names: str) -> None:
    """Each named field lies in [0, 1]."""
    for name in names:
        value = getattr(config, name)
        require(0 <= value <= 1, f"{group}.{name}={value}: must be between 0 and 1; give such a number")


def _like(config: Any, name: str) -> str:
    """The default of a field as an example, or a word for it."""
    default = getattr(type(config), name, None)
    is_number = isinstance(default, int | float) and not isinstance(default, bool)
    return f"{default:g}" if is_number else "such a number"
