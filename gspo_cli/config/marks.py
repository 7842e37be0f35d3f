"""Marks of text fields, by which a stored file is read (see `gspo_cli.config.trust`): what it would do where
the file comes from a stranger."""

from __future__ import annotations

from typing import Any

PLAIN = "plain"  # only shown, or one of a few words
CODE = "code"  # the dotted name of something to import
MODULE = "module"  # the name of a module to import, or of something in it after a colon
COMMAND = "command"  # a program that is run
SETTINGS = "settings"  # arguments of such code: addresses, names of variables, files
ADDRESS = "address"  # of a server that is asked
PATH = "path"  # a file that is read
MODEL = "model"  # a hub id, or a folder of weights
REMOTE = "remote"  # true lets code of a model run

Marks = dict[str, str]  # by name of a field


def marks_of(cls: Any) -> Marks:
    """The marks of a dataclass's fields, with those of its bases."""
    found: Marks = {}
    for base in reversed(cls.__mro__):
        found |= vars(base).get("TRUST", {})
    return found
