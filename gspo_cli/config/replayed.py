"""What overrides set, and what of a stored sweep's command is replayed unasked: see `gspo_cli.config.trust`.
Free of torch."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
    IntervalSweep,
    Override,
    OverrideType,
    QuotedString,
    RangeSweep,
)
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from gspo_cli.config.marks import PLAIN, marks_of
from gspo_cli.config.paths import CONF_DIR
from gspo_cli.errors import UserError

FOLDER = "hydra.sweep.dir="  # begins an argument that is dropped: a resumed sweep stays in its folder
# how many jobs and trials there are, how they are called and where they wait; values are numbers or words
OF_SWEEPS = {
    *(f"hydra.sweeper.{name}" for name in ("n_trials", "n_jobs", "max_batch_size", "max_failure_rate")),
    *("hydra.sweeper.direction", "hydra.sweeper.study_name", "hydra.sweeper.sampler.seed"),
    *(f"hydra.launcher.{name}" for name in ("parallel", "n_jobs", "partition", "timeout_min")),
    *("hydra.launcher.gpus_per_node",),
}
WORD = re.compile(r"[\w.+-]+")


def typed_changes(overrides: Collection[str]) -> DictConfig:
    """What `key=value` texts set, in sections. Raises UserError on a text that is not an override."""
    try:
        return OmegaConf.from_dotlist([text.lstrip("+") for text in overrides])
    except yaml.YAMLError as error:
        raise UserError(f"{' '.join(overrides)}: cannot be read; write key=value") from error


def is_replayed(argument: str, schema: Any) -> bool:
    """Whether an argument is -m, chooses options that conf/ has, gives numbers, texts or lists of these to a
    setting of `schema` without a mark, or is one of OF_SWEEPS. A reference (`$`) is in none of them."""
    if argument in ("-m", "--multirun") or argument.startswith(FOLDER):
        return True
    try:
        override = OverridesParser.create().parse_override(argument)
    except (HydraException, RecursionError):
        return False
    values = _values(override)
    if override.type is OverrideType.DEL or override.package is not None or values is None:
        return False
    key = override.key_or_group
    if key in {path.name for path in CONF_DIR.iterdir() if path.is_dir()}:
        return all(_is_option(key, value) for value in values)
    if key in OF_SWEEPS:
        return all(WORD.fullmatch(str(value)) for value in values)
    return key in _plain_settings(schema) and "$" not in argument


def _values(override: Override) -> list[Any] | None:
    """The values that an override gives its key, one for each job; None where one has a mapping in it."""
    value = override.value()
    if isinstance(value, RangeSweep | IntervalSweep):
        return [value.start]  # its other values are numbers, too
    given = value.list if isinstance(value, ChoiceSweep) else [value]
    return given if all(map(_is_simple, given)) else None


def _is_simple(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_simple, value))
    return value is None or isinstance(value, str | int | float | QuotedString)


def _is_option(group: str, value: Any) -> bool:
    """Whether a value is the name of an option that conf/ has, not a path to one elsewhere."""
    return value in [path.stem for path in (CONF_DIR / group).glob("*.yaml")]


def _plain_settings(cls: Any, prefix: str = "") -> Iterator[str]:
    """Dotted keys of the settings without a mark, in all groups but that of a task."""
    hints, marks = get_type_hints(cls), marks_of(cls)
    for field in fields(cls):
        kind, name = hints[field.name], f"{prefix}{field.name}"
        if is_dataclass(kind):
            yield from _plain_settings(kind, f"{name}.")
        elif marks.get(field.name, PLAIN) == PLAIN and name != "task":
            yield name
