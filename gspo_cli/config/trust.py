"""The rule of trust: what a stored file may not decide by itself. See docs/security.md.

A folder of a run may come from a stranger. Its settings are data, but some name code to import, an address to
send to, a variable that holds a key, or a file outside of the folder. Each text field of the schema carries
a mark in its dataclass's TRUST. A marked value of a stored file counts only if it names a part of gspo-cli,
is typed on the command line, `--trust` is given, or a command line that started a run had the same values.
Free of torch."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import dataclass, fields, is_dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, get_type_hints

from gspo_cli.config.marks import (
    ADDRESS,
    CODE,
    COMMAND,
    MODEL,
    MODULE,
    PATH,
    PLAIN,
    REMOTE,
    SETTINGS,
    marks_of,
)
from gspo_cli.config.replayed import is_replayed, typed_changes
from gspo_cli.errors import UserError
from gspo_cli.user_cache import cache_folder

FLAG = "--trust"
OURS = "gspo_cli."
EMBEDDED = "embedded"
OBJECT = "python object"  # a reward that a script gave, which no command builds
SAYS = {
    CODE: "names code that would be imported",
    MODULE: "names code that would be imported",
    COMMAND: "is a program that would be run",
    SETTINGS: "is passed to code",
    ADDRESS: "is an address that would be asked",
    PATH: "is a file outside of the folder",
    MODEL: "names a model outside of the folder",
    REMOTE: "lets a model run its own code",
}
TRACKERS = ("wandb", "tensorboard")  # their folders in a run's
given: set[str] = set()  # FLAG, where this command line has it
INHERITED = "GSPO_TRUSTED"  # in the environment of processes that this one starts: digests that it trusts


@dataclass(frozen=True)
class Marked:
    """A value of a stored file that is not honored unasked: its dotted key, and its kind."""

    key: str
    value: Any
    kind: str

    @property
    def fix(self) -> str:
        """How it is allowed, as the end of a sentence."""
        if isinstance(self.value, Mapping | list | tuple):
            return f"add {FLAG}"
        return f"add {FLAG}, or type {shlex.quote(f'{self.key}={self.value}')}"


def marked(values: Mapping[str, Any], schema: Any) -> list[Marked]:
    """What the settings `values` of a stored run have that needs trust, by `schema`, the dataclass of all."""
    found = [item for item in _marked_in(values, schema, "") if not _is_ours(item)]
    task = values.get("task")
    return [*found, *_marked_in_task(task)] if isinstance(task, Mapping) else found


def require_trust(
    values: Mapping[str, Any], schema: Any, source: Path, overrides: Collection[str] = (), only: str = ""
) -> None:
    """Raise UserError if the stored settings `values` of `source` have a marked value (under the section
    `only`, where it is given) that neither `overrides` type nor --trust covers, nor an earlier command line
    had. What --trust covers is remembered."""
    require_inside(source)
    typed = set(_leaves(typed_changes(overrides)))
    items = marked(values, schema)
    open_items = [item for item in items if item.key.startswith(only) and not _covered(item.key, typed)]
    inherited = os.environ.get(INHERITED, "").split()
    remote = [item for item in open_items if item.kind == REMOTE and _digest(item.key) not in inherited]
    if remote:
        raise UserError(
            f"{source}: its settings let the model run its own code, which is not done unasked; type "
            f"{remote[0].key}=true to allow it, or {remote[0].key}=false"
        )
    open_items = [item for item in open_items if item.kind != REMOTE]
    if not open_items:
        return
    for item in open_items:
        if item.kind == CODE and _file_of(str(item.value)) is None:
            raise UserError(
                f"{source}: its {item.key}={item.value} is not found from here; go to the folder that has "
                "it, and type the command there"
            )
    if not _allowed(digest_of(items)):
        item, more = open_items[0], len(open_items) - 1
        others = f" (and {more} more)" if more else ""
        raise UserError(
            f"{source}: its {item.key}={item.value} {SAYS[item.kind]}{others}; if you know where the folder "
            f"comes from, {item.fix}"
        )


def require_base_trust(base: str, adapter: Path) -> None:
    """Raise UserError if a stored adapter names its base by a path that leads out of its folder, and neither
    --trust covers it nor a run of this user was over that base."""
    item = Marked("model.base", base, MODEL)
    try:
        place = Path(base).expanduser()
        inside = not place.exists() or place.resolve().is_relative_to(adapter.resolve())
    except (OSError, RuntimeError, ValueError):  # no such user, or a name that no file can have
        return
    if inside or _is_ours(item):
        return
    if not _allowed(digest_of([item])):
        raise UserError(
            f"{adapter}: its base_model_name_or_path={base} {SAYS[MODEL]}; if you know where the folder "
            f"comes from, {item.fix}"
        )


def trust_base(base: str) -> None:
    """Remember the base of adapters that a run of this user trains."""
    remember(digest_of([Marked("model.base", base, MODEL)]))


def require_inside(folder: Path) -> None:
    """Raise UserError if a link in the folder of a run or a sweep leads out of it: what is written there
    would be written elsewhere. --trust and earlier trust cover it, as they do settings. What a tracker keeps
    in a folder of its own is not ours."""
    root = folder.resolve()
    for place, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in TRACKERS or (Path(place) / name).is_symlink()]
        for path in (Path(place) / name for name in (*folders, *files)):
            if not path.is_symlink() or path.resolve().is_relative_to(root):
                continue
            if not _allowed(_digest(["link", str(path), str(path.resolve())])):
                raise UserError(
                    f"{path}: is a link that leads out of the folder, to {path.resolve()}; put what it "
                    f"leads to in its place, or add {FLAG} if you know where the folder comes from"
                )


def trust_own(values: Mapping[str, Any], schema: Any) -> None:
    """Remember the marked values of a run that a command line starts: it resumes without a question. That a
    model's own code may run is known to the processes that this one starts, and to no later command."""
    items = marked(values, schema)
    if items:
        remember(digest_of(items))
    for item in items:
        if item.kind == REMOTE:
            _hand_down(_digest(item.key))


def trust_command(arguments: Sequence[str]) -> None:
    """Remember the command line of a sweep, which is replayed when the sweep is resumed."""
    remember(_digest(list(arguments)))


def require_command_trust(arguments: Sequence[str], schema: Any, source: Path) -> None:
    """Raise UserError if the stored command line of a sweep does more than choose options and give values to
    plain settings of `schema`, and this user never typed it."""
    require_inside(source)
    suspect = [text for text in arguments if not is_replayed(text, schema)]
    if suspect and not _allowed(_digest(list(arguments))):
        raise UserError(
            f"{source}: its command has {suspect[0]}, which is more than an option or a plain setting; if "
            f"you know where the folder comes from, add {FLAG}"
        )


def digest_of(items: Collection[Marked]) -> str:
    """A hash of marked values; code is hashed with the file that its name means here. Never of what is typed
    each time."""
    parts = [
        [item.key, item.value, _meaning_of(item)]
        for item in sorted(items, key=lambda item: item.key)
        if item.kind != REMOTE
    ]
    return _digest(parts)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(_ordered(value), default=str).encode()).hexdigest()


def _ordered(value: Any) -> Any:
    """`value` with its mappings as sorted pairs, whatever their keys are."""
    if isinstance(value, Mapping):
        return sorted(([str(key), _ordered(inner)] for key, inner in value.items()), key=lambda pair: pair[0])
    return [_ordered(inner) for inner in value] if isinstance(value, list | tuple) else value


def remember(digest: str) -> None:
    """Trust what has this digest from now on, in this process and those that it starts, too, where the file
    cannot be written."""
    _hand_down(digest)
    path = _state_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        known = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        if digest not in known.split():
            with path.open("a", encoding="utf-8") as file:
                file.write(f"{digest}\n" if known.endswith("\n") or not known else f"\n{digest}\n")
            path.chmod(0o600)
    except OSError:
        return  # a home that cannot be written: this process still knows


def _hand_down(digest: str) -> None:
    inherited = os.environ.get(INHERITED, "").split()
    if digest not in inherited:
        os.environ[INHERITED] = " ".join([*inherited, digest])


def _allowed(digest: str) -> bool:
    """Whether this is trusted; --trust says so and is remembered."""
    if FLAG in given:
        remember(digest)
    return FLAG in given or digest in _trusted()


def _trusted() -> set[str]:
    inherited = set(os.environ.get(INHERITED, "").split())
    try:
        return inherited | set(_state_file().read_text(encoding="utf-8", errors="replace").split())
    except OSError:
        return inherited


def _state_file() -> Path:
    root = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(root) / "gspo-cli" / "trusted"


def _covered(key: str, typed: Collection[str]) -> bool:
    """Whether a key or a section that it is in was typed. A part of it is not enough: the rest is theirs."""
    return any(key == each or key.startswith(f"{each}.") for each in typed)


def _leaves(changes: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted keys of the single settings that were typed: a mapping stands for those in it, because it is
    merged into the stored one."""
    for name, value in changes.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _marked_in(values: Mapping[str, Any], cls: Any, prefix: str) -> Iterator[Marked]:
    marks, hints = marks_of(cls), get_type_hints(cls)
    for field in fields(cls):
        value = values.get(field.name)
        if is_dataclass(hints[field.name]):
            if isinstance(value, Mapping):
                yield from _marked_in(value, hints[field.name], f"{prefix}{field.name}.")
            continue
        kind = marks.get(field.name, PLAIN)
        default = None if field.default is NO_DEFAULT else field.default
        if kind != PLAIN and value not in (None, "", default) and value != {}:
            yield Marked(f"{prefix}{field.name}", value, kind)


def _marked_in_task(task: Mapping[str, Any]) -> Iterator[Marked]:
    target = str(task.get("_target_"))
    if not target.startswith(OURS):
        yield Marked("task._target_", target, CODE)
        rest = {key: value for key, value in task.items() if key != "_target_" and _has_text(value)}
        yield from (Marked(f"task.{key}", value, SETTINGS) for key, value in rest.items())
        return
    from gspo_cli.config.compose import locate  # our own code; compose imports this module's marks

    cls = locate(target, "task._target_")
    if is_dataclass(cls):
        yield from (item for item in _marked_in(task, cls, "task.") if not _is_ours(item))


def _is_ours(item: Marked) -> bool:
    if item.kind == REMOTE:
        return False  # whatever is not the default may be read as true: 1, yes, on
    text = str(item.value)
    if item.kind == CODE:
        return text.startswith((OURS, OBJECT)) or (
            "." not in text and ":" not in text
        )  # the name of a part of ours
    fetched = str(cache_folder("models"))
    inside = text.startswith(f"{fetched}{os.sep}") and ".." not in Path(text).parts
    return item.kind == MODEL and (text == EMBEDDED or inside)


def _has_text(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_has_text, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_has_text, value))
    return isinstance(value, str) and value != ""


def _meaning_of(item: Marked) -> str | None:
    """What a marked value means here: the file of code, the files that a command names."""
    if item.kind in (CODE, MODULE):
        return str(_code_of(item))
    if item.kind != COMMAND:
        return None
    try:
        parts = shlex.split(str(item.value))
    except ValueError:  # is refused later
        return None
    return str([str(Path(part).resolve()) for part in parts if Path(part).exists()])


def _code_of(item: Marked) -> Path | None:
    """The file that a marked name of code would import."""
    name = str(item.value)
    if item.kind == MODULE and ":" not in name:  # as packages of environments are called: owner/name@version
        name = f"{name.rpartition('/')[2].partition('@')[0].replace('-', '_').lower()}:"
    return _file_of(name)


def _file_of(name: str) -> Path | None:
    """The file of the module that a dotted name would import, without importing anything."""
    module = name.removeprefix("python:").replace(":", ".").rpartition(".")[0]
    places: list[str] | None = [*sys.path, os.getcwd()]
    spec = None
    for part in module.split("."):
        spec = PathFinder.find_spec(part, places) if part else None
        if spec is None:
            return None
        places = list(spec.submodule_search_locations or [])
    return None if spec is None or spec.origin is None else Path(spec.origin).resolve()
