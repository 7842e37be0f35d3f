"""tau_retail: gold is accepted, doing nothing never wins, and bad files are one sentence."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from gspo_cli.config.compose import CONF_DIR
from gspo_cli.errors import UserError
from gspo_cli.policy.turns import TurnFormat
from gspo_cli.rewards.scoring import score, validate
from gspo_cli.tasks.scripted import converse, fixed_agent
from gspo_cli.tasks.tau.database import RetailDatabase
from gspo_cli.tasks.tau.files import read_cases, retail_problem
from gspo_cli.tasks.tau.oracle import service
from gspo_cli.tasks.tau.tools import replay
from gspo_cli.tasks.tau_retail.task import TauRetail
from gspo_cli.types import FinishReason, Message, Trajectory
from tests.support.families import FAMILIES, family_chat
from tests.support.retail_files import (
    built,
    cancel,
    problem_of,
    problems_of,
    synthetic_tasks,
    wish,
    write_folder,
)

PUBLISHED = Path(__file__).parents[2] / "shared" / "data" / "tau_bench_retail"
needs_published = pytest.mark.skipif(
    not PUBLISHED.is_dir(), reason="tau-bench's files are not beside this checkout"
)
SOURCES = ["synthetic", pytest.param("published", marks=needs_published)]


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path)


@pytest.fixture
def task(request, tmp_path):
    published = getattr(request, "param", "synthetic") == "published"
    return built(PUBLISHED if published else write_folder(tmp_path))


def judged(task, problem, turns):
    """Reward of a conversation in which the agent says `turns`."""
    environment, progress = task.environment(), []
    messages = [*environment.reset(problem, 0)]
    for turn in turns:
        step = environment.step(turn)
        progress.append(step.progress)
        messages += [Message("assistant", turn), *step.messages]
    trajectory = Trajectory(
        problem, [], [], [], [], messages, FinishReason.stop, [0.0] * len(progress), progress,
        environment.finish(),
    )  # fmt: skip
    return validate(task.reward(), trajectory, *score(task.reward(), [trajectory]))


def test_the_yaml_lists_every_setting_of_its_task():
    node = OmegaConf.load(CONF_DIR / "task" / "tau_retail.yaml")
    assert set(node) - {"_target_"} == {field.name for field in fields(TauRetail)}


@pytest.mark.parametrize("task", SOURCES, indirect=True)
def test_gold_reaches_the_goal_by_way_of_the_user_and_doing_nothing_does_not(task):
    for seed, problem in enumerate(problems_of(task)):
        environment = task.environment()
        converse(environment, problem, fixed_agent(service(task.shop, environment, problem)), seed)
        outcome = environment.finish()
        assert outcome.solved, (problem, outcome)
        assert environment.progress() == {"outcome": 1.0, "facts": 1.0, "policy": 0.0}
        assert outcome.counts["clarifications"] == outcome.counts["tool_errors"] == 0
        environment.reset(problem, seed)
        assert not environment.finish().solved
        assert environment.progress() == {"outcome": 0.0, "facts": 0.0, "policy": 0.0}


@pytest.mark.parametrize("task", SOURCES, indirect=True)
def test_a_ticket_can_be_worked_off_and_ends_with_done(task):
    ticket = built(task.path, user="ticket")
    for problem in problems_of(ticket):
        messages = ticket.solved(problem)
        assert problem.metadata["instruction"] in messages[0].content
        assert messages[0] == problem.messages[0]
        environment = ticket.environment()
        steps = [environment.reset(problem, 0)]
        steps += [environment.step(m.content) for m in messages if m.role == "assistant"]
        assert steps[-1].done
        assert environment.finish().solved
        assert environment.finish().counts["violations"] == 0


@needs_published
def test_the_oracle_serves_all_500_published_training_tasks():
    task = built(PUBLISHED)
    cases = read_cases(PUBLISHED, "train", "task.tasks")
    books = [RetailDatabase(task.shop) for _ in cases]
    failing = [replay(book, case.actions) > 0 for book, case in zip(books, cases, strict=True)]
    idle = [not book.changed() for book in books]
    assert (len(cases), sum(failing), sum(idle)) == (500, 19, 5)
    assert sum(a and b for a, b in zip(failing, idle, strict=True)) == 5  # nothing changes for it fails
    solved = 0
    for seed, case in enumerate(cases):
        environment, problem = task.environment(), retail_problem(case, "")
        converse(environment, problem, fixed_agent(service(task.shop, environment, problem)), seed)
        solved += environment.finish().solved
    assert solved == 500
    assert task.dropped == {"tasks": {"no_op": 5, "gold_fails": 14}}
    assert len(problems_of(task)) == 481 - len(task.notes()[1:])


def test_tasks_that_cannot_be_trained_on_are_left_out_and_counted(task):
    assert task.dropped == {"tasks": {"no_op": 1, "gold_fails": 1, "free_text": 1}}
    assert task.notes() == [
        "task.tasks=train: 3 of 7 tasks are left out: 1 in free text, which needs task.user=ticket or llm, "
        "1 whose gold actions fail, 1 where doing nothing wins"
    ]
    assert built(task.path, user="ticket").dropped == {"tasks": {"no_op": 1, "gold_fails": 1}}


def test_free_text_alone_is_an_error_that_names_the_user(folder):
    write_folder(folder, rows=[wish(4, "Tell me a story. ", cancel("#W8"))])
    with pytest.raises(UserError, match=r"^task\.user=scripted: none of the tasks of task\.tasks=train"):
        built(folder).train_problems()


def test_the_sides_are_disjoint_by_user_and_the_same_every_time(folder):
    tasks = [built(folder, heldout=2) for _ in range(2)]
    train, held = ([p.metadata["user_id"] for p in side(tasks[0])] for side in
                   (TauRetail.train_problems, TauRetail.heldout_problems))  # fmt: skip
    assert set(train).isdisjoint(held)
    assert [p.id for p in problems_of(tasks[0])] == [p.id for p in problems_of(tasks[1])]


def test_published_test_splits_are_benchmarks(folder):
    write_folder(folder, rows=synthetic_tasks()[:2], name="tasks_dev.jsonl")
    assert not built(folder).is_benchmark
    assert built(folder, tasks="dev").is_benchmark
    apart = built(folder, heldout_tasks="dev")
    assert [p.id for p in apart.heldout_problems()] == ["dev-0", "dev-1"]
    assert len(apart.train_problems()) == 2


def as_module(rows):
    def call(row):
        actions = ", ".join(f"Action(name={a['name']!r}, kwargs={a['kwargs']!r})" for a in row["actions"])
        plain = ", ".join(f"{key}={value!r}" for key, value in row.items() if key != "actions")
        return f"    Task({plain}, actions=[{actions}]),\n"

    return "from tau_bench.types import Action, Task\n\nTASKS = [\n" + "".join(map(call, rows)) + "]\n"


def test_the_published_python_file_is_read_without_running_it(folder):
    marker = folder / "ran"
    text = as_module(synthetic_tasks()) + f"open({str(marker)!r}, 'w')\n"
    (folder / "tasks_mine.py").write_text(text)
    mine, lines = (read_cases(folder, name, "task.tasks") for name in ("mine", "train"))
    assert [case.actions for case in mine] == [case.actions for case in lines]
    assert [case.instruction for case in mine] == [case.instruction for case in lines]
    assert not marker.exists()
    (folder / "tasks_bad.py").write_text("TASKS = [Task(user_id=open('ran', 'w'), actions=[])]")
    (folder / "tasks_worse.py").write_text("TASKS = [Task(user_id=1 + x)]")
    with pytest.raises(UserError, match=r"tasks_bad\.py:1: needs \"user_id\", a string"):
        read_cases(folder, "bad", "task.tasks")
    with pytest.raises(UserError, match=r"tasks_worse\.py is not a list of literal tasks"):
        read_cases(folder, "worse", "task.tasks")


@pytest.mark.parametrize(
    ("table", "damage", "reason"),
    [
        ("orders", None, r"task\.path: .*orders\.json cannot be read"),
        ("orders", "{", r"task\.path: .*orders\.json is not JSON"),
        ("users", "[]", r"task\.path: .*users\.json does not contain a JSON dict"),
        ("orders", '{"#W0": {}}', r'task\.path=.*order #W0: needs "user_id", a string'),
        ("users", '{"a": 1}', r"user a: is not an object"),
        ("products", '{"1": {"name": "x", "variants": {"2": {}}}}', r'variant 2: needs "item_id"'),
    ],
)
def test_a_bad_file_is_one_sentence_with_file_and_key(folder, table, damage, reason):
    path = folder / f"{table}.json"
    path.unlink() if damage is None else path.write_text(damage)
    with pytest.raises(UserError, match=reason):
        built(folder).train_problems()


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"user_id": 3}, r'needs "user_id", a string'),
        (wish(0, "", ("steal", {})), r"'steal' is not a tool"),
        (wish(0, "", cancel("#W0")) | {"actions": [{"name": "think"}]}, r'needs "kwargs", an object'),
        (wish(0, "", cancel("#W0"), outputs=[""]), r"every output must be a non-empty string"),
    ],
)
def test_a_bad_task_is_an_error_that_names_file_and_line(folder, row, reason):
    write_folder(folder, rows=[synthetic_tasks()[0], row])
    with pytest.raises(UserError, match=rf"tasks_train\.jsonl:2: .*{reason}"):
        built(folder).train_problems()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"path": None}, r"task\.path: is needed"),
        ({"tasks": "none"}, r"task\.tasks=none: there is no tasks_none\.jsonl or tasks_none\.py"),
        ({"heldout": 0}, r"task\.heldout=0"),
        ({"max_turns": 0}, r"task\.max_turns=0"),
        ({"user": "llm"}, r"task\.user_url: is needed with task\.user=llm"),
        ({"user": "llm", "user_url": "x"}, r"task\.user_model: is needed"),
        ({"user": "llm", "user_url": "x", "user_model": "m"}, r"task\.user_url=x: is not a valid address"),
        ({"user": "nobody"}, r"task\.user"),
    ],
)
def test_a_setting_out_of_range_is_an_error_that_names_it(folder, settings, reason):
    with pytest.raises(UserError, match=rf"^{reason}"):
        built(folder, **settings).train_problems()


def test_instructions_are_the_policy_and_the_sixteen_tools(folder):
    system = built(folder).system_prompt_and_tools()
    assert system.text.startswith("The policy.\n\n## The user")
    assert len(system.tools) == 16
    assert "## Tickets" in built(folder, user="ticket").system_prompt_and_tools().text
    assert built(folder, system_prompt="Mine.").system_prompt_and_tools().text == "Mine."
    silent = built(folder, instructions=False).system_prompt_and_tools()
    assert (silent.text, silent.announced) == ("", False)


def test_the_reward_prefers_gold_to_nothing_and_nothing_to_damage(task):
    problem = problem_of(synthetic_tasks()[0])
    gold = [m.content for m in task.solved(problem) if m.role == "assistant"]
    idle = ["Hello, how can I help you?", "Goodbye."]
    damage = ["/modify_user_address user_1 a b c d e f", "/cancel_pending_order #W2 'no longer needed'"]
    best, none, worst = (judged(task, problem, turns) for turns in (gold, idle, damage))
    assert best.total_reward > 0.85
    assert best.total_reward > none.total_reward + 0.5
    assert worst.total_reward <= none.total_reward
    assert (best.solved, none.solved, worst.solved) == (True, False, False)


@pytest.mark.long
@needs_published
@pytest.mark.parametrize("family", ["qwen3", "llama-3.1", "mistral-v3"])
def test_the_oracle_solves_all_usable_training_tasks_in_each_models_own_format(family, load):
    task = built(PUBLISHED)
    made = TurnFormat(family_chat(load("qwen3").tokenizer, family), task.system_prompt_and_tools())
    assert made.format.form.name == FAMILIES[family][1]
    usable = [
        case
        for case in read_cases(PUBLISHED, "train", "task.tasks")
        if replay(book := RetailDatabase(task.shop), case.actions) == 0 and book.changed()
    ]
    solved = 0
    for seed, case in enumerate(usable):
        environment, problem = task.environment(), retail_problem(case, "")
        lines = service(task.shop, environment, problem)
        turns = (made.read(made.ids(line)) for line in lines)
        converse(environment, problem, fixed_agent(turns), seed)
        solved += environment.finish().solved
    assert (solved, len(usable)) == (481, 481)
