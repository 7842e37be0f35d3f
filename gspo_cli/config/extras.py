"""What to type to install a package that a setting needs. Free of torch."""

from __future__ import annotations

import tomllib
from importlib import metadata

from gspo_cli.config.paths import PACKAGE


def install(extra: str) -> str:
    """The command that installs what the extra `extra` of this package consists of, by the names under which
    the registry has it: gspo-cli itself may be a checkout."""
    return f"pip install {' '.join(repr(text) for text in _packages(extra))}"


def _packages(extra: str) -> list[str]:
    project = PACKAGE.parent / "pyproject.toml"
    if project.is_file():
        values = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
        return list(values["optional-dependencies"][extra])
    found = [text.split(";") for text in metadata.requires("gspo-cli") or ()]
    marks = (f'extra == "{extra}"', f"extra == '{extra}'")
    return [name.strip() for name, *rest in found if any(mark in "".join(rest) for mark in marks)]
