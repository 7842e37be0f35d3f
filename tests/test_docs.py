"""The pages of docs/ say what is so: settings, equations in numbers, and examples that run."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
from dataclasses import is_dataclass, replace
from enum import Enum
from functools import reduce
from pathlib import Path
from pkgutil import resolve_name
from typing import get_type_hints

import pytest
import torch
from omegaconf import OmegaConf

from gspo_cli.algorithm.advantages import group_advantages
from gspo_cli.algorithm.objective import kl_penalty, loss_denominator, policy_loss
from gspo_cli.config.choices import Aggregation, KLEstimator, RatioLevel
from gspo_cli.config.compare_schema import CompareConfig
from gspo_cli.config.compose import CONF_DIR, locate
from gspo_cli.config.schema import AlgorithmConfig, RunConfig
from gspo_cli.errors import UserError
from gspo_cli.tasks.base import Task
from tests.support.command_line import gspo_train
from tests.support.configs import composed

ROOT = Path(__file__).resolve().parent.parent
SPEC = importlib.util.spec_from_file_location("reference", ROOT / "scripts" / "reference.py")
REFERENCE = importlib.util.module_from_spec(SPEC)
sys.modules["reference"] = REFERENCE  # where its dataclasses look for their module
SPEC.loader.exec_module(REFERENCE)
OBJECTIVE = (ROOT / "docs" / "objective.md").read_text(encoding="utf-8")

PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}

# ---- the configuration reference


def dataclasses_of_the_schema():
    """Every dataclass that settings come from, bases of tasks included, and every enum they choose from."""
    tasks = [locate(OmegaConf.load(path)["_target_"], "task") for path in (CONF_DIR / "task").glob("*.yaml")]
    pending, found = [RunConfig, CompareConfig, *tasks], {}
    while pending:
        cls = pending.pop()
        if cls.__name__ in found:
            continue
        found[cls.__name__] = cls
        if issubclass(cls, Enum):
            continue
        pending += [base for base in cls.__bases__ if is_dataclass(base)]
        parts = [part for hint in get_type_hints(cls).values() for part in REFERENCE.parts(hint)]
        pending += [p for p in parts if is_dataclass(p) or (isinstance(p, type) and issubclass(p, Enum))]
    return found


def settings_of(cls):
    """Names of the settings that a class has itself, inherited ones included and those of sections not."""
    return {s.name for s in REFERENCE.settings(cls, "") if s.owner is cls}


def test_every_setting_and_choice_has_a_docstring_below_it():
    for name, cls in dataclasses_of_the_schema().items():
        documented = set(REFERENCE.docstrings(cls))
        known = {c.name for c in cls} if issubclass(cls, Enum) else settings_of(cls)
        inherited = {word for base in cls.__mro__[1:] for word in REFERENCE.docstrings(base)}
        assert known - inherited <= documented <= known, name


def test_the_reference_is_not_behind_its_sources():
    page = REFERENCE.REFERENCE.read_text(encoding="utf-8")
    assert page == REFERENCE.reference(), "run `make docs`"


def accepts(holder, name, value):
    try:
        replace(holder, **{name: value})
    except UserError:
        return False
    return True


GROUPS = [name for name, hint in get_type_hints(RunConfig).items() if is_dataclass(hint)]
TASKS = ["arithmetic", "countdown", "customer_service", "technical_support"]  # those that need no file
RANGE = r"above \d|at least \d|between \d|\d to \d|0 or more"


@pytest.mark.parametrize("group", [*GROUPS, *(f"task={task}" for task in TASKS), "compare"])
def test_ranges_in_words_are_the_ranges_that_are_checked(group, configure):
    name, _, option = group.partition("=")
    overrides = [group] if option else []
    config = CompareConfig() if name == "compare" else getattr(configure(*overrides)[0], name)
    for setting in REFERENCE.settings(type(config), ""):
        *sections, key = setting.key.split(".")
        holder = reduce(getattr, sections, config)
        if not {int, float} & set(REFERENCE.parts(setting.annotation)):
            continue
        zero, below = accepts(holder, key, 0), accepts(holder, key, -1)
        assert (zero and below) or re.search(RANGE, setting.meaning), setting.key
        assert "above 0" not in setting.meaning or not (zero or below), setting.key
        assert "0 or more" not in setting.meaning or (zero and not below), setting.key


def test_settings_that_the_pages_name_exist():
    schemas = [cls for cls in dataclasses_of_the_schema().values() if is_dataclass(cls)]
    known = {s.key for s in REFERENCE.settings(RunConfig, "")} | {"task._target_"}
    known |= {s.key for s in REFERENCE.settings(CompareConfig, "compare.")}
    known |= {s.key for cls in schemas if issubclass(cls, Task) for s in REFERENCE.settings(cls, "task.")}
    sections = "|".join([*GROUPS, "task", "compare"])
    for page, text in PAGES.items():
        named = set(re.findall(rf"`((?:{sections})(?:\.\w+)+)[`=]", text))
        assert not {key for key in named if not any(f"{k}.".startswith(f"{key}.") for k in known)}, page


def test_links_of_the_pages_lead_somewhere():
    for page, text in PAGES.items():
        targets = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
        assert not [link for link in targets if not (ROOT / "docs" / link).exists()], page


def test_files_and_modules_that_the_pages_name_exist():
    others = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    for page, text in (PAGES | {path.name: path.read_text(encoding="utf-8") for path in others}).items():
        named = re.findall(r"\b(?:gspo_cli|conf|examples|scripts|tests)/[\w/.]*\w", text)
        assert not [path for path in named if not (ROOT / path).exists()], page
        for name in set(re.findall(r"\bgspo_cli(?:\.\w+)+", text)):
            assert resolve_name(name), page


def test_inline_mathematics_ends_on_its_line():
    # GitHub shows it as text else
    for page in ("objective.md", "extending.md"):
        prose = re.sub(r"```.*?```|`[^`\n]*`", "", PAGES[page], flags=re.DOTALL)
        assert not [line for line in prose.splitlines() if line.replace("$$", "").count("$") % 2], page


# ---- the objective in numbers

ADVANTAGE = 0.866
WIDTHS = {RatioLevel.token: (0.2, 0.27), RatioLevel.sequence: (3e-4, 4e-4)}
WIDTHS[RatioLevel.sequence_token] = WIDTHS[RatioLevel.sequence]
ANSWERS = {  # log w_t, A; token advantages are for GSPO-token alone
    "a": ([0.3, -0.2, -0.0994], ADVANTAGE),
    "b": ([0.002, 0.001, 0.0], ADVANTAGE),
    "c": ([0.002, 0.001, 0.0], -ADVANTAGE),
    "d": ([-0.002, -0.001, 0.0], -ADVANTAGE),
    "e": ([0.002, 0.001, 0.0], [ADVANTAGE, ADVANTAGE, -ADVANTAGE]),
}


def algorithm(level, aggregation=Aggregation.sequence_mean):
    left, right = WIDTHS[level]
    return AlgorithmConfig(
        name="docs",
        ratio_level=level,
        clip_range_left=left,
        clip_range_right=right,
        aggregation=aggregation,
        learning_rate=1.0,
    )


def weights(level, log_ratio, advantage):
    """Of one answer: the factor of each token's grad log pi in grad J."""
    logprobs = torch.tensor([log_ratio], dtype=torch.float64, requires_grad=True)
    per_token = torch.tensor(advantage, dtype=torch.float64).reshape(1, -1)
    mask = torch.ones_like(logprobs, dtype=torch.bool)
    loss, _ = policy_loss(logprobs, torch.zeros_like(logprobs), per_token, mask, algorithm(level), 1.0)
    return (-torch.autograd.grad(loss, logprobs)[0][0]).tolist()


def listed(numbers, form="{:.3f}"):
    return ", ".join(form.format(number + 0.0) for number in numbers)


def worked_row(name):
    log_ratio, advantage = ANSWERS[name]
    by_token = isinstance(advantage, list)
    s = torch.tensor(log_ratio, dtype=torch.float64).mean().exp().item()
    shown = [
        listed(weights(level, log_ratio, advantage)) if not by_token or level.value != "sequence" else ""
        for level in (RatioLevel.token, RatioLevel.sequence, RatioLevel.sequence_token)
    ]
    told = listed(advantage if by_token else [advantage], "{:+.3f}")
    return f"| {name} | {listed(log_ratio, '{:.4g}')} | {s:.4f} | {told} | {' | '.join(shown)} |"


@pytest.mark.parametrize("name", ANSWERS)
def test_the_worked_example_is_what_the_code_computes(name):
    assert worked_row(name) in OBJECTIVE


def test_the_worked_advantages_are_what_the_code_computes():
    found = group_advantages(torch.tensor([[1.0, 0, 0, 1]]), torch.ones(1, 4, dtype=torch.bool))
    assert f"Rewards 1, 0, 0, 1 give {listed(found[0].tolist(), '{:+.3f}')}." in OBJECTIVE


def test_the_worked_aggregations_are_what_the_code_computes():
    mask = torch.tensor([[True, False, False], [True, True, True]])
    values = []
    listed_there = (Aggregation.sequence_mean, Aggregation.token_mean, Aggregation.constant)
    for aggregation in (*listed_there, Aggregation.sequence_sum):
        config = algorithm(RatioLevel.token, aggregation)
        zeros, signs = torch.zeros(2, 3), torch.tensor([[1.0], [-1.0]])
        loss, _ = policy_loss(zeros, zeros, signs, mask, config, loss_denominator([1, 3], aggregation, 10))
        values.append(-loss.item())
    assert f"they are {listed(values, '{:g}')}." in " ".join(OBJECTIVE.split())


@pytest.mark.parametrize(
    ("name", "form", "where"),
    [
        ("k1", "$d$", "taken off the reward, as the mean over an answer's tokens"),
        ("k2", "$d^2 / 2$", "added to the loss"),
        ("k3", "$e^{-d} - 1 + d$", "added to the loss"),
    ],
)
def test_the_worked_kl_is_what_the_code_computes(name, form, where):
    d, mask = torch.tensor([[0.1]], dtype=torch.float64), torch.ones(1, 1, dtype=torch.bool)
    value = kl_penalty(d, torch.zeros_like(d), mask, KLEstimator[name]).item()
    assert f"| `{name}` | {form} | {value:.4g} | {where} |" in OBJECTIVE


def option(name):
    return composed("model=small", f"algorithm={name}").algorithm


def family_row(name):
    node = option(name)
    widths = [REFERENCE.shown(node[key]) for key in ("clip_range_left", "clip_range_right")]
    choices = [node[key].value for key in ("ratio_level", "clip_mode", "aggregation")]
    advantage = [node[key].value for key in ("advantage_baseline", "advantage_scale")]
    told = [f"`{text}`" for text in (name, *choices, *advantage)]
    return f"| {' | '.join([*told, *widths])} |"


FAMILY = sorted(path.stem for path in (CONF_DIR / "algorithm").glob("*.yaml"))


@pytest.mark.parametrize("name", FAMILY)
def test_the_table_of_the_family_says_what_the_options_set(name):
    assert family_row(name) in OBJECTIVE


# ---- the examples

EXTENDING = PAGES["extending.md"]
FILES = dict(re.findall(r"\*\*`([\w/.]+)`\*\*\n\n```\w+\n(.*?)```", EXTENDING, flags=re.DOTALL))
COMMANDS = re.findall(r"```console\ngspo-train (.*?)\n```", EXTENDING)
QUICK = [  # as experiment=smoke, but a sweep has an experiment of its own
    "model.shape.hidden_size=32",
    "model.shape.layers=1",
    "model.cold_start.steps=2",
    "model.cold_start.stop_score=null",
    "training.num_outer_iterations=1",
    "training.num_generations=4",
    "training.generations_per_iteration=16",
    "rollout.max_completion_length=16",
    "evaluation.problems=4",
    "evaluation.samples=2",
    "hardware.threads=1",
]


@pytest.fixture(scope="module")
def summaries(tmp_path_factory):
    """Every command of the page, run in a folder with every file of it: for each command the run folders
    with their summaries."""
    folder = tmp_path_factory.mktemp("extending")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    for place, line in enumerate(COMMANDS):
        places = [f"hydra.run.dir=runs/{place}", f"hydra.sweep.dir=runs/{place}"]
        done = gspo_train(*shlex.split(line), *QUICK, *places, cwd=folder)
        assert (done.returncode, done.stderr) == (0, ""), (line, done.stdout)
    return {
        line: {
            path.parent: json.loads(path.read_text(encoding="utf-8"))
            for path in (folder / "runs" / str(place)).rglob("summary.json")
        }
        for place, line in enumerate(COMMANDS)
    }


@pytest.mark.long
@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_page_trains_with_the_files_of_the_page(line, summaries):
    found = summaries[line].values()
    assert {summary["status"] for summary in found} == {"completed"}
    task = re.search(r" task=(\w+)", line)
    assert {summary["task"] for summary in found} == {task[1] if task else "sorting"}


@pytest.mark.long
def test_the_parts_of_the_reward_of_the_page_are_logged(summaries):
    [line] = [line for line in COMMANDS if "reward=" in line]
    [run] = summaries[line]
    metrics = json.loads((run / "metrics.jsonl").read_text(encoding="utf-8"))
    assert {"rewards/brief/length/mean", "rewards/brief/right/mean", "rewards/asked/mean"} <= set(metrics)


def test_the_sweep_of_the_page_runs_every_combination(summaries):
    [line] = [line for line in COMMANDS if line.startswith("-m ")]
    found = sorted((summary["algorithm"], summary["seed"]) for summary in summaries[line].values())
    assert found == [(name, seed) for name in ("grpo_higher", "gspo_flat") for seed in (0, 1)]


METRIC = r"`((?:clip_ratio|clip_range|ratio|sampling|length|shadow|completions|rewards|moe)/[\w/<>]+)`"


def test_metrics_that_the_pages_name_are_written(summaries):
    """By the runs of the page, or, where it takes another model, by a literal name in the package."""
    lines = [
        (run / "metrics.jsonl").read_text(encoding="utf-8") for runs in summaries.values() for run in runs
    ]
    logged = {name for line in lines for name in json.loads(line)}
    literal = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "gspo_cli").rglob("*.py"))
    for page, text in PAGES.items():
        for named in set(re.findall(METRIC, text)):
            pattern = re.compile(re.sub(r"<\w+>", r"\\w+", named))
            assert any(map(pattern.fullmatch, logged)) or f'"{named}"' in literal, f"{page}: {named}"
