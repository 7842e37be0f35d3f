"""How the sources are laid out: imports point one way, heavy libraries have owners, files stay small."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "gspo_cli"
MODULES = sorted(PACKAGE.rglob("*.py"))
SOURCES = [*MODULES, *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "scripts").rglob("*.py"))]

# A part imports from its own and from lower lines; parts of one line do not know each other.
LAYERS = [
    [
        "errors",
        "signals",
        "plain_files",
        "types",
        "randomness",
        "user_cache",
        "tasks.tools",
    ],  # rewards know what a call is
    ["config", "concurrency", "chat_endpoint", "adapters", "manifest", "hub"],
    ["sources"],
    ["algorithm", "rewards"],
    ["tasks"],
    ["environments", "tool_calls"],  # former locations of modules that users import
    ["policy", "run"],
    ["rollout", "console"],
    ["agents"],
    ["diagnosis"],
    ["launching"],
    ["training", "compare"],
    ["api"],
    ["commands"],
    ["start"],
]
LAYER = {part: level for level, parts in enumerate(LAYERS) for part in parts}

# Libraries that are slow or optional, and the parts or modules that may import them.
OWNERS = {
    "torch": {"algorithm", "policy", "rollout", "training", "rewards/reward_model.py"},
    "transformers": {"policy", "rollout", "rewards/reward_model.py"},
    "peft": {"policy"},
    "tokenizers": {"policy"},
    "safetensors": {"policy", "training"},
    "hydra": {"config", "commands", "api", "launching"},
    "rich": {"console", "launching", "commands"},
    "wandb": {"run/trackers.py"},
    "tensorboard": {"run/trackers.py"},
    "math_verify": {"rewards/maths_worker.py"},
    "reasoning_gym": {"tasks/reasoning_gym.py"},
    "httpx": {"chat_endpoint.py", "agents/verifiers_chat.py"},
    "bitsandbytes": {"policy/quantization.py", "policy/optimizers.py"},
    "vllm": {"rollout/vllm_engine.py"},
    "deepspeed": {"training/zero.py", "policy/weights.py"},
    "scipy": {"compare"},
    "jinja2": {"compare", "policy", "tasks/row_templates.py"},
    "jsonschema": {"tasks/tools/schemas.py", "rewards/json_answers.py"},
    "datasets": {"tasks/tables.py"},
    "pyarrow": {"tasks/tables.py"},
    "resvg_py": {"compare/pictures.py"},
    "zstandard": {"tasks/json_rows.py"},
    "starlette": {"agents/endpoint.py"},
    "uvicorn": {"agents/endpoint.py"},
    "verifiers": {"agents/verifiers_environment.py", "agents/verifiers_chat.py"},
    "openai": {"agents/verifiers_chat.py"},
}
OPTIONAL = {
    "datasets",
    "pyarrow",
    "zstandard",
    "wandb",
    "tensorboard",
    "math_verify",
    "reasoning_gym",
    "resvg_py",
    "bitsandbytes",
    "vllm",
}


@cache
def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(text(path))


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names of all imports, those inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part(path: Path) -> str:
    """The package or top-level module that a file belongs to."""
    return part_of(".".join(path.relative_to(PACKAGE).with_suffix("").parts))


def part_of(module: str) -> str:
    """The part of a module or of a name in it, as dotted below gspo_cli."""
    package, _, rest = module.partition(".")
    inner = f"{package}.{rest.partition('.')[0]}"
    return inner if inner in LAYER else package


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_every_part_has_a_layer():
    assert {part(path) for path in MODULES} - {"__init__"} == set(LAYER)


def test_imports_point_down():
    found = []
    for path in MODULES:
        here = part(path)
        for imported in imports(parsed(path)):
            if imported.startswith("gspo_cli."):
                there = part_of(imported.removeprefix("gspo_cli."))
                if there != here and LAYER[there] >= LAYER[here] and not {there, here} <= set(LAYERS[0]):
                    found.append(f"{name(path)} imports {imported}")
    assert found == []


def test_heavy_libraries_stay_with_their_owners():
    found = []
    for path in MODULES:
        here = {part(path), path.relative_to(PACKAGE).as_posix()}
        for imported in imports(parsed(path)):
            owners = OWNERS.get(imported.split(".")[0])
            if owners is not None and not here & owners:
                found.append(f"{name(path)} imports {imported}")
    assert found == []


def test_no_folder_stands_unquoted_in_a_command_that_resumes_it():
    assert [name(path) for path in MODULES if "resume={" in text(path)] == []


def test_optional_libraries_are_imported_where_they_are_used():
    found = []
    for path in MODULES:
        at_import = ast.Module([node for node in parsed(path).body if not is_definition(node)], [])
        early = {imported.split(".")[0] for imported in imports(at_import)} & OPTIONAL
        found += [f"{name(path)} imports {library}" for library in sorted(early)]
    assert found == []


def is_definition(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)


PROBE = """
import sys
from gspo_cli.commands.{} import main
try:
    main()
except SystemExit:
    pass
heavy = {{"torch", "transformers", "peft", "bitsandbytes", "wandb", "tensorboard", "scipy.stats"}}
print("loaded", *sorted(heavy & set(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--help"], "Groups and their options"),
        (["--cfg", "job"], "clip_range_left: ${model.presets.sequence.clip_range_left}"),
        (["--cfg", "job", "--resolve", "model=moe"], "clip_range_left: 0.0002"),
        (["seed=-1"], ""),
        (["resume=nowhere"], ""),
        (["--help"], "gspo-compare compares"),
    ],
)
def test_help_settings_and_bad_input_load_no_heavy_library(arguments, shown, tmp_path):
    name = "compare" if "gspo-compare" in shown else "train"
    command = [sys.executable, "-c", PROBE.format(name), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "loaded"
    assert shown in done.stdout
    assert done.returncode == 0


@pytest.mark.long
def test_files_and_functions_fit_a_screen_or_a_few():
    assert [name(path) for path in SOURCES if len(text(path).splitlines()) > 400] == []
    functions = (
        (path, node)
        for path in SOURCES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    long = [f"{name(path)}: {node.name}" for path, node in functions if node.end_lineno - node.lineno >= 60]
    assert long == []


def test_every_module_says_what_it_is_for():
    trees = {name(path): parsed(path) for path in MODULES}
    assert [here for here, tree in trees.items() if tree.body and not ast.get_docstring(tree)] == []


def test_nothing_is_left_to_be_done():
    words = ("TO" + "DO", "FIX" + "ME", "XX" + "X")
    assert [f"{name(path)}: {word}" for path in SOURCES for word in words if word in text(path)] == []


def test_the_style_checks_are_as_strict_as_ever():
    ruff = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]
    rules = {"E", "F", "W", "I", "UP", "B", "ANN", "SIM", "RUF", "PT", "C4", "NPY"}
    ambiguous_characters = {"RUF001", "RUF002", "RUF003"}
    assert ruff["line-length"] <= 110
    assert rules <= set(ruff["lint"]["select"])
    assert set(ruff["lint"]["ignore"]) <= {"ANN401"} | ambiguous_characters
    assert ruff["lint"]["per-file-ignores"] == {"tests/*": ["ANN"], "scripts/*": ["ANN"]}


SHARED_TASKS = {"sales": {"scenarios"}, "tutoring": {"scenarios"}, "tau_retail": {"tau"}, "tau2": {"tau"}}


@pytest.mark.parametrize("path", sorted((PACKAGE / "tasks").glob("*/*.py")), ids=name)
def test_tasks_do_not_import_each_other(path):
    here = path.parent.name
    folders = {folder.name for folder in (PACKAGE / "tasks").iterdir() if folder.is_dir()} - {"tools"}
    imported = {name.removeprefix("gspo_cli.tasks.").partition(".")[0] for name in imports(parsed(path))}
    assert imported & folders <= {here} | SHARED_TASKS.get(here, set())
