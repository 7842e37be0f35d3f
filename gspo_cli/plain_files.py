"""Files of a folder that may come from a stranger: only plain ones are read, and none outside of it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from gspo_cli.errors import UserError


def require_plain(path: Path, links: bool = False) -> None:
    """Raise UserError if something at `path` is no plain file: reading a pipe or a device would not end. Nor
    may it be a link that leads out of its folder, unless `links` may."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # absent, which the reader says
        return
    if not stat.S_ISREG(mode):
        raise UserError(f"{path}: is not a plain file; put the file itself in its place")
    if not links and path.is_symlink() and not path.resolve().is_relative_to(path.parent.resolve()):
        raise UserError(
            f"{path}: is a link that leads out of its folder, to {path.resolve()}; put the file itself there"
        )
