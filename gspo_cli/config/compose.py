"""From Hydra's composition, or a saved file, to a checked RunConfig. Composed once per run; torch is not
imported.

`task._target_` names a dataclass that is both the schema and the object: the YAML's other keys are its
fields.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, cast, get_type_hints

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gspo_cli.config import dependent, schema
from gspo_cli.config.auto_hardware import auto_value
from gspo_cli.config.checks import folder_name, require_name
from gspo_cli.config.extras import install
from gspo_cli.config.hints import expected, meant, meant_of_task
from gspo_cli.config.paths import CONF_DIR as CONF_DIR  # imported from here by others
from gspo_cli.config.paths import PACKAGE as PACKAGE
from gspo_cli.config.replayed import typed_changes
from gspo_cli.errors import FOREIGN, UserError, as_exception
from gspo_cli.plain_files import require_plain
from gspo_cli.user_cache import fetched_or_hub

OBJECT = "python object"  # prefix of `reward` in a saved configuration where a script gave the reward
PLUGINS = {  # options of Hydra that packages bring, and the extra that installs each
    "hydra/launcher=joblib": "joblib",
    "hydra/sweeper=optuna": "optuna",
    "hydra/launcher=submitit_slurm": "submitit",
    "hydra/launcher=submitit_local": "submitit",
}
MOVED = {  # dotted names that stored runs have, and their current names; task targets never moved
    "gspo_cli.rewards.conversation.StandingReward": "gspo_cli.rewards.conversation.ProgressReward",
}
MISSING = "???"  # OmegaConf's marker of a missing value
WRITTEN = ".config.yaml"  # a copy of config.yaml as the program wrote it, by which edits are noticed
RESOLVERS: dict[str, Callable[..., Any]] = {  # what references in conf/ may call
    "fetched_or_hub": fetched_or_hub,
    "resumed_or": lambda resume, new: resume or new,
    "digest": lambda text: hashlib.sha256(text.encode()).hexdigest()[:8],
    "folder_name": folder_name,
    "auto_hardware": auto_value,
    "fitted_size": dependent.fitted_size,
    "fitted_length": dependent.fitted_length,
    "fitted_minibatch": dependent.fitted_minibatch,
    "default_lengths": dependent.default_lengths,
    "notes": dependent.notes,
}


def register() -> None:
    """Tell Hydra the schema of the whole configuration, and OmegaConf what references may call."""
    ConfigStore.instance().store(name="schema", node=schema.RunConfig)
    for name, resolver in RESOLVERS.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)


def composed(overrides: Sequence[str], directories: Sequence[Path] = ()) -> DictConfig:
    """conf/train.yaml under `overrides`, as gspo-train composes it; `directories` add custom options. Works
    inside a job of Hydra, too.

    Raises UserError."""
    register()
    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    added = ", ".join(f"'file://{directory.absolute()}'" for directory in directories)
    found = [f"hydra.searchpath=[{added}]"] if directories else []
    try:
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            return compose("train", overrides=[*found, *overrides])
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error)) from error
    except ValueError as error:  # of Hydra, for the name of an option that reads as a number or as null
        raise UserError(f"{' '.join(overrides)}: does not compose ({error}); give options by name") from error
    finally:
        GlobalHydra.instance().hydra = running


def import_from_here() -> None:
    """Let modules of the current folder be imported."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last: a file of the folder never takes the place of a library


def locate(path: Any, key: str) -> Any:
    """The object a dotted path names, also by a former name. Raises UserError naming `key`."""
    if not isinstance(path, str):
        raise UserError(f"{key}={path}: is not a dotted name; give module.Name")
    module_name, _, name = MOVED.get(path, path).rpartition(".")
    if not path.startswith("gspo_cli."):
        import_from_here()
    try:
        return getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"{key}={path}: cannot be imported ({error}); give module.Name, importable from this folder"
        ) from error
    except FOREIGN as error:  # whatever a module does while it is imported
        why = f"{type(error).__name__}: {as_exception(error)}"
        raise UserError(f"{key}={path}: fails while it is imported ({why}); correct the module") from error


def literal(value: Any) -> Any:
    """`value` escaped so that OmegaConf takes it literally: no text in it is read as a reference or as a
    missing value."""
    if isinstance(value, Mapping):
        return {key: literal(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [literal(inner) for inner in value]
    if not isinstance(value, str):
        return value
    if value == MISSING:
        return f"${{oc.decode:\"'{MISSING}'\"}}"
    # OmegaConf halves the backslashes before a reference
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)


def plain_values(node: DictConfig, throw_on_missing: bool = False) -> dict[str, Any]:
    """The values of a node by key: references resolved, enums as their names."""
    values = OmegaConf.to_container(node, resolve=True, throw_on_missing=throw_on_missing, enum_to_str=True)
    return cast(dict[str, Any], values)  # OmegaConf's type also covers nodes that are lists


def build_task(node: Any) -> Any:
    """The task object of a `task` node: fields checked against the dataclass that `_target_` names."""
    if not isinstance(node, DictConfig):
        raise UserError(f"task={node}: is not the settings of a task; choose one with task=<option>")
    values = plain_values(node)
    target = values.pop("_target_", None)
    if target is None:
        raise UserError(
            "task._target_: is missing; name the task's dataclass, e.g. gspo_cli.tasks.gsm8k.Gsm8k"
        )
    cls = locate(target, "task._target_")
    if not is_dataclass(cls):
        raise UserError(f"task._target_={target}: must be a dataclass derived from gspo_cli.tasks.base.Task")
    unknown = sorted(set(values) - {f.name for f in fields(cls)})
    if unknown:
        raise UserError(f"task.{unknown[0]}: is not a setting of {target}{_suggestion(unknown[0], cls)}")
    for field in fields(cls):
        value = values.get(field.name)
        number = get_type_hints(cls)[field.name] is bool and type(value) in (int, float)
        if number and value not in (0, 1):  # a structured node takes any number for true
            raise UserError(f"task.{field.name}={value}: is not valid; {expected(cls, field.name)}")
    # a structured node reads the text "???" as no value, so it is set on the object
    marks = [name for name in values if values[name] == MISSING and not OmegaConf.is_missing(node, name)]
    held = literal({**values, **dict.fromkeys(marks, "")})
    try:
        task = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), held))
    except OmegaConfBaseException as error:
        raise UserError(explain(error, cls, "task.")) from error
    for name in marks:
        setattr(task, name, MISSING)
    return task


def build_config(node: DictConfig) -> schema.RunConfig:
    """A checked RunConfig from a composed or loaded node. Raises UserError with one sentence."""
    try:
        # convert to plain values: in a typed node, keys added by `+` would pass the merge unchecked
        values = literal(plain_values(node, throw_on_missing=True))
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema.RunConfig), values))
        assert isinstance(config, schema.RunConfig)
        config.task = build_task(node.task)
        config.check_task()
        for key in ("task.name", "model.label", "algorithm.name"):
            group, _, name = key.partition(".")
            require_name(key, getattr(getattr(config, group), name))
        if config.reward is not None:
            _check_reward(config.reward)
    except (OmegaConfBaseException, TypeError) as error:
        raise UserError(explain(error)) from error
    return config


def _check_reward(path: str) -> None:
    if path.startswith(OBJECT):
        raise UserError(
            f"reward={path}: was created by a script and cannot be rebuilt; rerun the script, or "
            "evaluate with reward=null, the task's own reward"
        )
    locate(path, "reward")


def resolved_yaml(node: DictConfig) -> str:
    """The configuration with every interpolation resolved, as saved with the run: it reloads anywhere."""
    resolved = plain_values(node)
    resolved.pop("resume", None)
    return OmegaConf.to_yaml(OmegaConf.create(literal(resolved)))


def with_overrides(saved: DictConfig, overrides: list[str]) -> DictConfig:
    """`saved` with `key=value` texts applied. Raises UserError on a text that is not an override,
    or that replaces a section."""
    changes = typed_changes(overrides)
    sections = [
        str(key)
        for key in changes
        if isinstance(saved.get(key), DictConfig) and not isinstance(changes[key], DictConfig)
    ]
    if sections:
        raise UserError(
            f"{sections[0]}: a section cannot be replaced as a whole; give single settings, as in "
            "evaluation.problems=500"
        )
    try:
        merged = OmegaConf.merge(saved, changes)
    except OmegaConfBaseException as error:
        if error.full_key or len(overrides) > 1:
            raise
        # a mapping in place of a list: the error does not say where
        raise UserError(f"{overrides[0]}: cannot be merged; give a list, as in [a,b]") from error
    assert isinstance(merged, DictConfig)
    followed = OmegaConf.select(merged, "rollout.default_lengths")
    if followed:  # what is given now is no longer a default
        given = changes.get("rollout") or {}
        merged.rollout.default_lengths = [name for name in followed if name not in given]
    return merged


def load_saved(path: Path) -> DictConfig:
    """The node of a saved config.yaml. Raises UserError if there is none, or it cannot be read."""
    require_plain(path)
    try:
        _refuse_aliases(path)
        node = OmegaConf.load(path)
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(
            f"{path.parent}: is not a run folder (no {path.name}); give the folder of a run"
        ) from error
    except Exception as error:  # a YAML parser raises many errors; they all mean the same to the user
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: cannot be read as YAML ({reason}); restore the file") from error
    if not isinstance(node, DictConfig):
        raise UserError(f"{path}: has no run settings; give a run folder of gspo-train")
    for key, text in _references(OmegaConf.to_container(node, resolve=False)):
        raise UserError(
            f"{path}: {key} is the reference {text}, which a stored file cannot have; write its value in its "
            "place"
        )
    return node


def written_settings(run: Path) -> Path:
    """Where the settings of a run are as the program wrote them last; config.yaml in older runs."""
    written = run / WRITTEN
    return written if written.exists() else run / "config.yaml"


def _refuse_aliases(path: Path) -> None:
    """Raise UserError for YAML that repeats parts of itself: a few lines of it can fill the memory."""
    with path.open(encoding="utf-8") as file:
        for token in yaml.scan(file):
            if isinstance(token, yaml.AliasToken):
                raise UserError(
                    f"{path}: refers to a part of itself (*{token.value}), which a stored file cannot do; "
                    "write the part in its place"
                )


def _references(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Texts in a stored file that OmegaConf would resolve, with their keys: they could read the environment.
    `literal` writes one of them, which stands for three question marks."""
    if isinstance(value, Mapping | list):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for name, inner in items:
            yield from _references(inner, f"{key}.{name}".lstrip("."))
    elif isinstance(value, str) and value != literal(MISSING) and re.search(r"(?<!\\)(\\\\)*\$\{", value):
        yield key, value


def explain(error: Exception, root: Any = schema.RunConfig, prefix: str = "") -> str:
    """Hydra's and OmegaConf's errors as one sentence that names the key, the value and what to type. The keys
    are those of the dataclass `root`, and shown after `prefix`."""
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override}: is not an override; write key=value, and quote values with special characters"
        )
    if isinstance(error, MissingConfigException):
        return _explain_missing(error)
    cause = error.__cause__ if isinstance(error, HydraException) and error.__cause__ else error
    text = str(cause).strip()
    found = re.search(r"full_key: (\S+)", text)
    key = found.group(1) if found else ""
    reason = text.splitlines()[0]
    merged = re.search(r"override \+*([\w.]+)=", str(error))  # Hydra names it where OmegaConf does not
    if not key and "Cannot merge" in reason and merged:
        key = merged.group(1)
    if re.search(r"^Key '.*' (is not in struct|not in)", reason):
        typed = re.search(r"Could not override '([\w.]+)'", str(error))
        whole = typed.group(1) if typed else key
        hint = _meant_of_task(whole, cause) or meant(whole, root) or "`gspo-train --cfg job` shows them all"
        return f"{prefix}{key}: is not a known setting; {hint}"
    name = key.rpartition(".")[2]
    to_type = expected(_group_of(key, root), name)
    if "missing mandatory value" in reason.lower() or "Unexpected value '???'" in reason:
        return f"{prefix}{key or reason}: has no value; {to_type or f'set it with {key}=...'}"
    if key and to_type:
        return f"{prefix}{key}{_refused(reason)}: {to_type.replace('<section>', f'{prefix}{key}')}"
    if key:
        return f"{prefix}{key}: {reason[0].lower()}{reason[1:]}"
    where = f"{prefix.rstrip('.')}: " if prefix else ""
    return where + " ".join(str(error).split())


def _meant_of_task(key: str, error: BaseException) -> str:
    """What an unknown key of the task means, where the task of the configuration in `error` is ours."""
    node = getattr(error, "parent_node", None)
    if not key.startswith("task.") or node is None:
        return ""
    target = OmegaConf.select(node._get_root(), "task._target_", throw_on_missing=False)
    if not isinstance(target, str) or not target.startswith("gspo_cli."):
        return ""
    cls = locate(target, "task._target_")
    return meant_of_task(key, cls) if is_dataclass(cls) else ""


def _refused(reason: str) -> str:
    """`=<value>` as OmegaConf names it in `reason`; empty where it does not."""
    if "is not Optional" in reason:
        return "=null"
    ends = r"(?: for field of type| of type|, expected| \(\w+\) is not)"
    found = re.search(rf"[Vv]alue '?(.*?)'?{ends}", reason)
    return "" if not found else "=null" if found.group(1) == "None" else f"={found.group(1)}"[:80]


def _explain_missing(error: MissingConfigException) -> str:
    missing = error.missing_cfg_file or ""
    group, _, option = missing.rpartition("/")
    options = [name for name in (error.options or []) if name != "schema"]
    chosen = f"{group}={option}"
    if chosen in PLUGINS:
        return f"{chosen}: is not installed; {install(PLUGINS[chosen])}"
    if group and options:
        return f"{group}={option}: is not an option; choose one of {', '.join(sorted(options))}"
    return " ".join(str(error).split("\n")[0].split())


def _group_of(key: str, root: Any) -> Any:
    """The dataclass under `root` that holds `key`; None if there is none, as for a task's settings."""
    here: Any = root
    for part in key.split(".")[:-1]:
        here = get_type_hints(here).get(part) if is_dataclass(here) else None
    return here if is_dataclass(here) else None


def _suggestion(name: str, cls: Any) -> str:
    close = difflib.get_close_matches(name, [f.name for f in fields(cls)], n=1)
    return f"; did you mean task.{close[0]}?" if close else "; `gspo-train --cfg job` shows them all"
