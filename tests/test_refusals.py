"""Bad values for every key: each is refused in one sentence that names the key and says what to type."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from typing import get_type_hints

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gspo_cli.config.compose import (
    CONF_DIR,
    build_config,
    build_task,
    composed,
    explain,
    locate,
    with_overrides,
)
from gspo_cli.config.hints import ELSEWHERE, leaves
from gspo_cli.config.schema import RunConfig
from gspo_cli.errors import UserError
from gspo_cli.tasks.customer_service import CustomerService
from tests.support.command_line import call, gspo_train

BAD = [
    *("abc", "-1", "1e30", "nan", "inf", "-0.5", "true", "[1,2]", "{a: 1}", "null", "''", "0.5", "???", "[]"),
    "99999999999999999999",
]
WORDS = "give|use|choose|set|type|write|leave|lower|raise|add|needs?|such|did|sets"
FIX = re.compile(rf"\b({WORDS})\b")
ANY_TEXT = [
    *("model.name", "model.base", "model.label", "model.cold_start.demonstrations", "algorithm.name"),
    *("task.name", "task.system_prompt", "task.license", "task.source", "reward", "logging.run_name"),
    *("logging.wandb_project", "logging.wandb_tags", "hardware.chosen", "hardware.resized"),
    *("rollout.old_logprobs_chosen", "rollout.default_lengths"),
]
FOLLOWED = {  # what is checked under the name of a setting that follows it
    "task.answer_length": "rollout.max_completion_length",
    "task.prompt_length": "rollout.max_prompt_length",
    "model.presets.generations_per_iteration": "training.generations_per_iteration",
}


def kind_of(key: str):
    here = RunConfig
    if key.startswith("task."):
        return get_type_hints(CustomerService)[key.removeprefix("task.")]
    for part in key.split("."):
        here = get_type_hints(here)[part]
    return here


KEYS = [
    *(key for key in leaves(RunConfig) if key not in ("task", "resume", "reward_settings", "notes")),
    *(f"task.{field.name}" for field in fields(CustomerService)),
]


@cache
def base():
    return composed(["hardware=cpu"])


@cache
def said(key: str, value: str) -> str | None:
    """What is printed for `key=value`; None if it is accepted."""
    try:
        build_config(with_overrides(base(), [f"{key}={value}"]))
    except UserError as error:
        return str(error)
    except OmegaConfBaseException as error:
        return explain(error)
    return None


@pytest.mark.long
def test_bad_values_are_refused_with_what_to_type():
    refused, unhelpful = 0, []
    for place, key in enumerate(KEYS):
        for value in BAD[place % 3 :: 3]:  # all of them for every key take a minute
            sentence = said(key, value)
            if sentence is None:
                continue
            refused += 1
            named = key.rpartition(".")[2] in sentence or FOLLOWED.get(key, key) in sentence
            if not FIX.search(sentence) or not named or "\n" in sentence:
                unhelpful.append(sentence)
    assert refused > 300
    assert len(unhelpful) <= 0.01 * refused, "\n".join(unhelpful)


@pytest.mark.parametrize("key", KEYS)
def test_no_setting_takes_what_is_absurd(key):
    kind = kind_of(key)
    texts = [] if key in ANY_TEXT else ["abc"]
    enumerated = isinstance(kind, type) and issubclass(kind, Enum)
    for value in [*texts, "1e30", "nan", "{a: 1}"] if not is_dataclass(kind) else []:
        if (key in ANY_TEXT and value != "{a: 1}") or (kind is bool and not enumerated and value == "1e30"):
            continue
        assert said(key, value) is not None, f"{key}={value} is accepted"


@pytest.mark.parametrize("name", sorted(ELSEWHERE))
def test_a_name_of_another_trainer_is_answered_with_ours(name):
    ours = ELSEWHERE[name]
    assert ours in (*leaves(RunConfig), "hydra.run.dir", "task.path")
    for group in ("", "training.", "algorithm."):
        sentence = said(f"{group}{name}", "1")
        assert sentence is None or ours in sentence or f".{name}" in sentence


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("actor_rollout_ref.actor.clip_ratio=0.2", "algorithm.clip_range_left"),
        ("actor_rollout_ref.rollout.n=8", "training.num_generations"),
        ("trainer.learning_rate=1e-6", "algorithm.learning_rate"),
    ],
)
def test_nested_names_of_others_are_answered_with_ours(override, hint, tmp_path):
    done = gspo_train(override, cwd=tmp_path)
    assert (done.returncode, hint in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize(
    ("arguments", "start"),
    [
        (["seed=-1"], "seed=-1: must be 0 or more"),
        (["training.num_generation=4"], "training.num_generation: is not a known setting"),
        (["model=huge"], "model=huge: is not an option"),
        (["algorithm=null"], "Config group override must be"),
        (["=1"], "Config group override must be"),
        (["é=ü"], "é=ü: is not an override"),
        ([""], ": is not an override"),
        (["hardware=zero2", "hardware.device=cpu"], "hardware.processes: has no value; set how many"),
        (["hardware=zero2"], "hardware.device=cuda: no GPU is visible; use hardware=cpu"),
        (["seed=-1", "hydra.run.dir=mine"], "seed=-1: must be 0 or more"),
        (["hydra.run.dir=/dev/null/run"], "/dev/null/run: cannot be used as a run folder"),
        (["resume=nowhere"], "nowhere: is not a run folder"),
        (["resume="], "resume: is empty"),
        (["reward=nope.Reward"], "reward=nope.Reward: cannot be imported"),
    ],
)
def test_the_command_says_it_in_one_line_exits_with_2_and_leaves_no_file(arguments, start, tmp_path):
    done = gspo_train(*arguments, cwd=tmp_path, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"gspo-train: {start}")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("task", "override", "hint"),
    [
        ("reasoning_gym", "task.problem=5", "did you mean task.problems?"),
        ("customer_service", "task.tool_form=x", "did you mean task.tool_format?"),
        ("dataset", "task.prompts=x", "did you mean task.prompt?"),
        ("reasoning_gym", "task.settings.max_terms=3",
         "type +task.settings.max_terms=..., or task.settings={max_terms: ...}"),
        ("arithmetic", "task.name.x=1", "task.name has no parts: give text"),
        ("arithmetic", "task.learning_rate=1", "did you mean algorithm.learning_rate?"),
        ("arithmetic", "task.group_size=1", "training.num_generations sets that here"),
    ],
)  # fmt: skip
def test_a_hint_knows_the_settings_of_the_task(task, override, hint):
    key = override.partition("=")[0]
    with pytest.raises(UserError, match=f"^{re.escape(f'{key}: is not a known setting; {hint}')}$"):
        composed([f"task={task}", override])


@pytest.mark.long
@pytest.mark.parametrize("task", sorted(path.stem for path in (CONF_DIR / "task").glob("*.yaml")))
def test_null_is_refused_by_its_name(task):
    node = composed([f"task={task}", "hardware=cpu"])
    cls = locate(node.task._target_, "task._target_")
    for field in fields(cls):
        if get_type_hints(cls)[field.name] not in (str, int, bool):
            continue
        try:
            build_task(OmegaConf.merge(node, {"task": {field.name: None}}).task)
        except UserError as error:
            sentence = str(error)
        assert sentence.startswith(f"task.{field.name}=null: give "), sentence


LONG = "x" * 400
TOO_LONG = {
    "task.path": ["gspo-train", "task=dataset", f"task.path={LONG}"],
    "a part of task.path": ["gspo-train", "task=dataset", f"task.path=folder/{LONG}/x.csv"],
    "task.path of lines": ["gspo-train", "task=jsonl", f"task.path={LONG}"],
    "model.name": ["gspo-train", "model=small", f"model.name={LONG}"],
    "model.cold_start": ["gspo-train", f"model.cold_start.demonstrations={LONG}", "task=arithmetic"],
    "hydra.run.dir": ["gspo-train", "task=arithmetic", f"hydra.run.dir={LONG}"],
    "resume": ["gspo-train", f"resume={LONG}"],
    "resume of a sweep": ["gspo-train", "-m", f"resume={LONG}"],
    **{
        command: [command, LONG]
        for command in ("gspo-eval", "gspo-chat", "gspo-serve", "gspo-doctor", "gspo-compare")
    },
    "gspo-export": ["gspo-export", LONG, "out"],
}


@pytest.mark.parametrize("case", TOO_LONG)
def test_a_name_that_no_file_can_have_is_one_sentence(case, tmp_path):
    done = call(*TOO_LONG[case], cwd=tmp_path, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "long" in done.stderr or "xxx" in done.stderr
