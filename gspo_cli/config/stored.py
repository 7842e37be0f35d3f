"""The typed configuration of a stored run, read without importing its task."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gspo_cli.config.checks import NAME
from gspo_cli.config.choices import AdvantageBaseline
from gspo_cli.config.compose import explain, literal, load_saved, plain_values
from gspo_cli.config.schema import RunSettings
from gspo_cli.errors import UserError
from gspo_cli.plain_files import LARGEST

MADE = 256  # groups that are kept
NAMES = ("task.name", "model.label", "algorithm.name")  # `build_config` requires the same of them
PLAIN = (str, int, float, bool, type(None))  # values that JSON has, beside lists and mappings
_made: dict[tuple[Any, str], tuple[Any, dict[str, Any]]] = {}


@dataclass
class StoredConfig(RunSettings):
    """The settings of a run that is only read, not trained. `task` is a mapping, so that logs can be read
    where the module of a user's task is not importable. `plain` has all settings as config.yaml has them, by
    key, with the defaults of settings that an older run did not have."""

    plain: Mapping[str, Any] = field(default_factory=dict)


def read_stored(path: Path) -> StoredConfig:
    """The configuration in a run's config.yaml. Raises UserError if it is not that of a run."""
    return stored_config(plain_values(load_saved(path)), str(path))


def stored_config(values: Mapping[str, Any], source: str) -> StoredConfig:
    """`values` of a resolved configuration, each group checked and completed from the schema. Rules that
    cross groups are not checked, because an older run may have had other rules. Raises UserError that names
    `source`."""
    groups = {name: kind for name, kind in get_type_hints(RunSettings).items() if is_dataclass(kind)}
    lacking = [name for name in (*groups, "task") if not isinstance(values.get(name), Mapping)]
    if lacking:
        raise UserError(f"{source}: has no {lacking[0]} settings; give a run folder of gspo-train")
    odd = next(_odd_values(values), None) or next(_nameless(values), None)
    if odd is not None:
        raise UserError(f"{source}: {ascii(odd)[1:-1][:80]} is not what a run writes; restore the file")
    algorithm = values["algorithm"]
    if algorithm.get("advantage_baseline") != AdvantageBaseline.value.value:  # defaults of its day
        values = {**values, "algorithm": {key: each for key, each in algorithm.items() if key != "value"}}
    found = {each.name: values[each.name] for each in fields(RunSettings) if each.name in values}
    plain = dict(values)
    for name, kind in groups.items():
        try:
            found[name], plain[name] = _group(kind, values[name])
        except OmegaConfBaseException as error:
            raise UserError(f"{source}: {explain(error, kind, f'{name}.')}") from error
    if found["training"].prompts_per_iteration < 1:
        raise UserError(
            f"{source}: training has fewer answers in an iteration than to a prompt; restore the file"
        )
    return StoredConfig(**found, plain=plain)


def _odd_values(values: Mapping[Any, Any] | list[Any], above: str = "") -> Iterator[str]:
    """Dotted keys of values that JSON does not have, of whole numbers that are no floats, and of mappings
    whose keys are of several kinds: none of them compares."""
    kinds = {type(key) for key in values} if isinstance(values, Mapping) else set()
    if len(kinds) > 1 or not kinds <= {str, int, float}:
        yield above.rstrip(".") or "a key"
    for key, value in values.items() if isinstance(values, Mapping) else enumerate(values):
        if isinstance(value, Mapping | list):
            yield from _odd_values(value, f"{above}{key}.")
        elif type(value) not in PLAIN or (type(value) is int and abs(value) > LARGEST):
            yield f"{above}{key}"


def _nameless(values: Mapping[str, Any]) -> Iterator[str]:
    """Keys that are to have a name, or a text, and do not."""
    for key in (*NAMES, "model.name"):
        group, _, name = key.partition(".")
        value = values[group].get(name)
        if not isinstance(value, str) or (key in NAMES and not NAME.fullmatch(value)):
            yield key


def _group(kind: Any, values: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A group as its dataclass, and as plain values. The runs of a comparison share most of their groups, and
    making one takes milliseconds."""
    key = (kind, repr(values))
    if key not in _made:
        node = OmegaConf.merge(OmegaConf.structured(kind), literal(values))
        assert isinstance(node, DictConfig)
        while len(_made) >= MADE:
            _made.pop(next(iter(_made)))
        _made[key] = (OmegaConf.to_object(node), plain_values(node))
    typed, plain = _made[key]
    return copy.deepcopy(typed), copy.deepcopy(plain)
