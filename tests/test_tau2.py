"""tau2: what needs no judge is kept, gold is accepted, and doing nothing never wins."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from gspo_cli.config.compose import CONF_DIR
from gspo_cli.errors import UserError
from gspo_cli.tasks.tau2.scenario import FAULTS
from gspo_cli.tasks.tau2.task import Tau2
from gspo_cli.tasks.tau2.telecom_files import telecom_turns
from tests.support.tau2_files import (
    built,
    problems_of,
    write_domains,
)

PUBLISHED = Path(__file__).parents[2] / "shared" / "data" / "tau2_bench" / "domains"
needs_published = pytest.mark.skipif(not PUBLISHED.is_dir(), reason="tau2-bench's files are not beside this")
SOURCES = ["synthetic", pytest.param("published", marks=needs_published)]
TRANSFER = "/transfer_to_human_agents 'I cannot fix it'"


@pytest.fixture
def folder(tmp_path):
    return write_domains(tmp_path)


@pytest.fixture
def domains(request, tmp_path):
    return PUBLISHED if request.param == "published" else write_domains(tmp_path)


def outcome_of(environment, problem, turns):
    environment.reset(problem, 0)
    steps = [environment.step(turn) for turn in turns]
    return environment.finish(), steps


def test_the_yaml_lists_every_setting_of_its_task():
    node = OmegaConf.load(CONF_DIR / "task" / "tau2.yaml")
    assert set(node) - {"_target_"} == {field.name for field in fields(Tau2)}


@pytest.mark.parametrize("domains", SOURCES, indirect=True)
@pytest.mark.parametrize(("domain", "split"), [("retail", "train"), ("retail", "test"), ("telecom", "small")])
def test_gold_is_accepted_and_doing_nothing_is_not(domains, domain, split):
    task = built(domains, domain, split=split)
    for problem in problems_of(task):
        gold = [m.content for m in task.solved(problem) if m.role == "assistant"]
        outcome, steps = outcome_of(task.environment(), problem, gold)
        assert outcome.solved, (problem.id, outcome)
        assert outcome.counts["violations"] == outcome.counts["tool_errors"] == 0
        assert steps[-1].progress == {"outcome": 1.0, "facts": 1.0, "policy": 0.0}
        outcome, steps = outcome_of(task.environment(), problem, ["Hello?", "done"])
        assert not outcome.solved
        assert [step.done for step in steps] == [False, True]
        assert steps[-1].progress == {"outcome": 0.0, "facts": 0.0, "policy": 0.0}


@needs_published
def test_the_twenty_small_telecom_tasks_are_solved_as_their_facts_say():
    task = built(PUBLISHED)
    problems = problems_of(task)
    agents = {"nothing": lambda p: [], "transfer": lambda p: [TRANSFER], "gold": telecom_turns}
    solved = {
        name: sum(outcome_of(task.environment(), p, turns(p))[0].solved for p in problems)
        for name, turns in agents.items()
    }
    assert (len(problems), solved) == (20, {"nothing": 0, "transfer": 2, "gold": 20})
    assert task.notes() == []


@needs_published
def test_the_published_retail_tasks_that_need_no_judge_are_kept():
    counts = {split: built(PUBLISHED, "retail", split=split).dropped["split"] for split in ("train", "test")}
    assert counts["train"] == {"judge": 29, "no_op": 4}
    assert counts["test"] == {"judge": 11, "no_op": 2, "gold_fails": 1}


def test_tasks_that_cannot_be_trained_on_are_left_out_and_counted(folder):
    assert built(folder).dropped["split"] == {"no_op": 1, "gold_fails": 1, "judge": 1, "unknown": 1}
    task = built(folder, "retail")
    assert task.dropped["split"] == {"no_op": 1, "gold_fails": 1, "judge": 1}
    assert task.notes() == [
        "task.split=train: 3 of 6 tasks are left out: 1 whose gold actions fail, "
        "1 that only an LLM judge can score, 1 where doing nothing wins"
    ]


def test_splits_with_test_tasks_are_benchmarks_and_sides_are_disjoint(folder):
    assert not built(folder, "retail").is_benchmark
    assert built(folder, "retail", split="test").is_benchmark
    task = built(folder, heldout_split="test")
    assert [p.id for p in task.heldout_problems()] == ["airplane", "sim"]
    assert {p.id for p in task.train_problems()}.isdisjoint(["airplane", "sim"])


@pytest.mark.parametrize(("domain", "policy", "count"), [("retail", "Retail.", 16), ("telecom", "Main.", 44)])
def test_instructions_are_the_policy_and_the_tools(folder, domain, policy, count):
    system = built(folder, domain).system_prompt_and_tools()
    assert system.text.startswith(policy)
    assert len(system.tools) == count
    assert not built(folder, domain, instructions=False).system_prompt_and_tools().announced


def test_demonstrations_are_gold_in_the_line_form(folder):
    task = built(folder)
    demonstrations = task.demonstrations()
    assert len(demonstrations) == len(task.train_problems())
    assert demonstrations == built(folder).demonstrations()
    assert all(demonstration.messages[-1].content == "Done." for demonstration in demonstrations)


def test_every_published_fault_is_known():
    split = PUBLISHED / "telecom" / "tasks_small.json"
    if split.is_file():
        rows = json.loads(split.read_text(encoding="utf-8"))
        used = {a["func_name"] for row in rows for a in row["initial_state"]["initialization_actions"]}
        assert used <= set(FAULTS)


@pytest.mark.parametrize(
    ("domain", "name", "damage", "reason"),
    [
        ("telecom", "db.toml", None, r"task\.path: .*db\.toml cannot be read"),
        ("telecom", "db.toml", "x", r"task\.path: .*db\.toml is not TOML"),
        ("telecom", "db.toml", "", r'db\.toml needs "plans", a list'),
        ("telecom", "db.toml", "[[plans]]", r'db\.toml, plans 1: needs "plan_id", a string'),
        ("telecom", "user_db.toml", "[device]", r'user_db\.toml, device: needs "sim_card_status", a string'),
        ("telecom", "tasks_small.json", '[{"id": "a"}]', r'tasks_small\.json, task 1: needs "ticket"'),
        ("retail", "tasks.json", "{}", r"tasks\.json does not contain a JSON list"),
        ("retail", "tasks.json", '[{"id": "a"}]', r'tasks\.json, task 1: needs "user_scenario"'),
        ("retail", "db.json", "{}", r'db\.json: needs "orders", an object'),
        ("retail", "split_tasks.json", "{}", r"task\.split=train: is not in .*split_tasks\.json"),
    ],
)
def test_a_bad_file_is_one_sentence_with_file_and_key(folder, domain, name, damage, reason):
    path = folder / domain / name
    path.unlink() if damage is None else path.write_text(damage)
    with pytest.raises(UserError, match=reason):
        built(folder, domain).train_problems()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"path": None}, r"task\.path: is needed"),
        ({"split": "other"}, r"task\.split=other: has no usable task"),
        ({"split": "nowhere"}, r"task\.split=nowhere: is not in .* it has small, test, other"),
        ({"heldout": 0}, r"task\.heldout=0"),
        ({"domain": "airline"}, r"task\.domain"),
    ],
)
def test_a_setting_out_of_range_is_an_error_that_names_it(folder, settings, reason):
    with pytest.raises(UserError, match=rf"^{reason}"):
        built(folder, **settings).train_problems()
