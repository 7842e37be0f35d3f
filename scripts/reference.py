"""Writes docs/configuration.md: every setting with its type, default, options and meaning.

Types, defaults and meanings come from the schemas (gspo_cli/config, the task dataclasses) and the docstrings
under their fields, the values of options from conf/."""

from __future__ import annotations

import ast
import inspect
import re
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml
from omegaconf import MISSING as TO_BE_GIVEN

from gspo_cli.config import schema
from gspo_cli.config.compare_schema import CompareConfig
from gspo_cli.config.compose import CONF_DIR, PACKAGE, locate
from gspo_cli.run.files import write_atomically
from gspo_cli.tasks.base import Task

REFERENCE = PACKAGE.parent / "docs" / "configuration.md"
PLAIN = {int: "integer", float: "number", str: "text", bool: "true/false", Any: "settings by name"}
HEAD = """# Configuration reference

`make docs` writes this page from the schemas in gspo_cli/config, the docstrings under their fields, and the
YAML of conf/; a test fails where it is out of date.

A setting is given as `key=value` (`gspo-train training.num_outer_iterations=20`), an option of a group as
`group=option` (`algorithm=grpo`). `gspo-train --cfg job --resolve` shows what a command comes to. Where the
default is "the option's", each option gives its own value; `${...}` takes the value of another setting.
"""


@dataclass(frozen=True)
class Setting:
    """One key: the class that defines it, its full dotted name, its type as annotated, and its default."""

    owner: type
    key: str
    annotation: Any
    default: Any

    @property
    def name(self) -> str:
        """Without the sections it is in."""
        return self.key.rpartition(".")[2]

    @property
    def choices(self) -> type[Enum] | None:
        """The enum that lists what it may be."""
        found = [t for t in parts(self.annotation) if isinstance(t, type) and issubclass(t, Enum)]
        return found[0] if found else None

    @property
    def meaning(self) -> str:
        """What it does, and a phrase for each choice."""
        sentence = words(self.owner, self.name)
        if self.choices is None:
            return sentence
        listed = (f"<br>`{c.value}` {words(self.choices, c.name)}" for c in self.choices)
        return sentence + "".join(listed)


def words(cls: type, member: str) -> str:
    """The docstring under `member`, in the class or the nearest of its bases that has one."""
    for base in cls.__mro__:
        if member in docstrings(base):
            return escaped(docstrings(base)[member])
    raise KeyError(f"{cls.__name__}.{member}: has no docstring below it in {inspect.getsourcefile(cls)}")


@cache
def docstrings(cls: type) -> dict[str, str]:
    """The docstrings under the fields of a dataclass or the members of an enum, by name. They are not kept at
    run time, so they are read from the source."""
    if not cls.__module__.startswith("gspo_cli"):
        return {}
    found = {}
    for node, below in pairwise(ast.parse(inspect.getsource(cls)).body[0].body):
        if isinstance(below, ast.Expr) and isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            found[target.id] = " ".join(ast.literal_eval(below.value).split())
    return found


def escaped(text: str) -> str:
    """Text whose <...> Markdown shows in place of taking it for HTML."""
    return text.replace("<", r"\<")


def parts(annotation: Any) -> tuple[Any, ...]:
    """The types that a union allows; of other types the type itself."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def settings(cls: type, prefix: str) -> Iterator[Setting]:
    """All settings of a dataclass, sections within it included, in their order."""
    hints = get_type_hints(cls)
    for each in fields(cls):
        annotation = hints[each.name]
        if is_dataclass(annotation):
            yield from settings(annotation, f"{prefix}{each.name}.")
        elif not (issubclass(cls, schema.RunSettings) and each.name == "task"):
            yield Setting(cls, prefix + each.name, annotation, default_of(each))


def default_of(each: Field) -> Any:
    """A field's default; TO_BE_GIVEN where it has none."""
    if each.default_factory is not MISSING:
        return each.default_factory()
    return TO_BE_GIVEN if each.default is MISSING else each.default


def read(path: Path) -> dict[str, Any]:
    """A YAML file's settings by dotted key, as written: no reference is resolved."""
    return dict(flat({k: v for k, v in parsed(path).items() if k not in ("defaults", "hydra")}))


def parsed(path: Path) -> dict[str, Any]:
    """As PyYAML has it, but with the numbers of YAML 1.2, as OmegaConf reads them (3e-4)."""
    return yaml.load(path.read_text(encoding="utf-8"), Loader=Loader) or {}


class Loader(yaml.SafeLoader):
    """PyYAML's own takes 3e-4 for text."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves by dotted key."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def about(path: Path) -> str:
    """What the comment at the head of a YAML file says."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = [line[2:] for line in lines[: _first(lines)] if not line.startswith("# @package")]
    return escaped(" ".join(comment))


def _first(lines: Sequence[str]) -> int:
    return next((place for place, line in enumerate(lines) if not line.startswith("# ")), len(lines))


def kind(annotation: Any) -> str:
    """A type in words."""
    return " or ".join(_kind(part) for part in parts(annotation))


def _kind(part: Any) -> str:
    if part is type(None):
        return "null"
    if get_origin(part) is list:
        return f"list of {_kind(get_args(part)[0])}"
    return "choice" if isinstance(part, type) and issubclass(part, Enum) else PLAIN[part]


def shown(value: Any) -> str:
    """A value as it is written on the command line."""
    if value == TO_BE_GIVEN:
        return "the option's"
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, float) and 0 < abs(value) < 1e-3:
        mantissa, exponent = f"{value:.9e}".split("e")
        return f"`{float(mantissa):g}e{int(exponent)}`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, list):
        return f"`[{', '.join(map(str, value))}]`"
    return {None: "`null`", "": "(empty)"}.get(value, f"`{value}`")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    cells = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(text.replace('|', chr(92) + '|') for text in row)} |" for row in cells)


def key_table(found: Sequence[Setting], given: Mapping[str, Any]) -> str:
    """Settings with their meaning; `given` replaces a schema's default."""
    rows = [[f"`{s.key}`", kind(s.annotation), shown(given.get(s.key, s.default)), s.meaning] for s in found]
    return table(["key", "type", "default", "meaning"], rows)


def options(group: str) -> list[Path]:
    """The YAML files of a group; none where there is no such folder."""
    return sorted((CONF_DIR / group).glob("*.yaml"))


def given_by(group: str) -> dict[str, dict[str, Any]]:
    """The values of each option of a group, by full key."""
    return {
        path.stem: {f"{group}.{key}": value for key, value in read(path).items()} for path in options(group)
    }


def option_list(group: str) -> str:
    """What each option of a group is."""
    return table(["option", "what it is"], [[f"`{path.stem}`", about(path)] for path in options(group)])


def option_table(found: Sequence[Setting], values: Mapping[str, Mapping[str, Any]]) -> str:
    """The values that options give."""
    rows = [
        [f"`{s.key}`", *(shown(each[s.key]) if s.key in each else "" for each in values.values())]
        for s in found
        if any(s.key in each for each in values.values())
    ]
    return table(["key", *(f"`{name}`" for name in values)], rows)


def summary(cls: type) -> str:
    """The first sentence of a class's docstring."""
    return " ".join((cls.__doc__ or "").split()).split(". ")[0].rstrip(".") + "."


def group_section(group: str, cls: type, given: Mapping[str, Any]) -> str:
    """All of a group."""
    found, values = list(settings(cls, f"{group}.")), given_by(group)
    pieces = [f"## {group}", summary(cls)]
    if values:
        always = {s.key for s in found if all(s.key in each for each in values.values())}
        given = {**given, **dict.fromkeys(always, TO_BE_GIVEN)}
        pieces += [
            option_list(group),
            "What the options give; an empty cell leaves the default:",
            option_table(found, values),
        ]
    return "\n\n".join([*pieces, key_table(found, given)])


def task_section() -> str:
    """What all tasks have, then each task's own settings."""
    tasks = {path: locate(parsed(path)["_target_"], str(path)) for path in options("task")}
    common = list(settings(Task, "task."))
    shared = [s.name for s in common if s.name not in ("name", "system_prompt")]
    rows = [
        [f"`{path.stem}`", about(path), *(shown(values[f"task.{name}"]) for name in shared)]
        for path, values in zip(tasks, given_by("task").values(), strict=True)
    ]
    pieces = [
        "## task",
        "Problems, environment and reward. A task is a dataclass that `task._target_` names; its fields are "
        "its settings. All have these:",
        key_table(common, {}),
        table(["option", "what it is", *(f"`{name}`" for name in shared)], rows),
    ]
    for path, cls in tasks.items():
        own = [s for s in settings(cls, "task.") if s.name not in {c.name for c in common}]
        pieces += [f"### task={path.stem}", f"`{parsed(path)['_target_']}`"]
        pieces.append(key_table(own, given_by("task")[path.stem]))
    return "\n\n".join(pieces)


def experiment_section() -> str:
    """Overrides that belong together."""
    about_all = "Overrides that belong together, as in `gspo-train experiment=smoke`:"
    return f"## experiment\n\n{about_all}\n\n{option_list('experiment')}"


def reference() -> str:
    """The whole page."""
    given = read(CONF_DIR / "train.yaml")
    groups = get_type_hints(schema.RunConfig)
    sections = [HEAD.rstrip()]
    for name, cls in groups.items():
        if name == "task":
            sections.append(task_section())
        elif is_dataclass(cls):
            sections.append(group_section(name, cls, given))
    top = [s for s in settings(schema.RunConfig, "") if s.owner is schema.RunConfig]
    sections += [
        "## Keys outside of groups\n\n" + key_table(top, given),
        experiment_section(),
        group_section("compare", CompareConfig, {}),
    ]
    return "\n\n".join(sections) + "\n"


if __name__ == "__main__":
    page = Path(sys.argv[1]) if sys.argv[1:] else REFERENCE
    write_atomically(page, reference())
    print(f"{page}: written")
