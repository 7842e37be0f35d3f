"""Settings as they are typed in a shell."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

HYDRA_PLAIN = re.compile(r"[A-Za-z0-9_./+-]+")  # characters that an override accepts without quotes
# texts of these characters that Hydra takes for numbers, truth values or null
HYDRA_TYPED = re.compile(r"[+-]?[\d.][\d._e+-]*|[+-]?(inf|nan)|true|false|null", re.IGNORECASE)


def override(key: str, value: Any) -> str:
    """key=value as typed in a shell, which Hydra and OmegaConf read as this value: no text in it is a
    reference, a number or null. A mapping in it must be `is_typeable`."""
    return shlex.quote(f"{key}={_typed(str(value) if isinstance(value, Path) else value)}")


def _typed(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_typed(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_typed, value)) + "]"
    if not isinstance(value, str):
        return str(value) if isinstance(value, float) else json.dumps(value)
    if _is_word(value):
        return value
    from hydra.core.override_parser.types import Quote, QuotedString  # a worker on a GPU may lack Hydra

    from gspo_cli.config.compose import literal

    return QuotedString(literal(value), Quote.double).with_quotes()


def _is_word(text: str) -> bool:
    """Whether Hydra reads a text as it is without quotes."""
    return bool(HYDRA_PLAIN.fullmatch(text)) and not HYDRA_TYPED.fullmatch(text)


def is_typeable(value: Any) -> bool:
    """Whether an override can have this value: Hydra has no quotes for the keys of a mapping."""
    return all(isinstance(key, str) and _is_word(key) for key in _keys(value))


def _keys(value: Any) -> Iterator[Any]:
    """The keys of all mappings in a value."""
    if isinstance(value, Mapping):
        yield from value
    if isinstance(value, Mapping | list | tuple):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _keys(inner)


def allowing(keys: Sequence[str]) -> str:
    """compare.allow=[<keys>], or nothing where a key has what a shell or Hydra would read."""
    return f"compare.allow=[{','.join(keys)}]" if all(map(HYDRA_PLAIN.fullmatch, keys)) else ""
