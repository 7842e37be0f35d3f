"""Every task: the reward accepts gold and nothing else, the sides are disjoint, errors name file and line."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from gspo_cli.config.compose import CONF_DIR, MOVED, build_task, locate
from gspo_cli.errors import UserError
from gspo_cli.tasks.arithmetic import Arithmetic
from gspo_cli.tasks.base import Task
from gspo_cli.tasks.countdown import Countdown, solutions
from gspo_cli.tasks.expression import evaluate
from gspo_cli.tasks.files import read_demonstrations
from gspo_cli.tasks.gsm8k import Gsm8k
from gspo_cli.tasks.jsonl import JsonlTask
from gspo_cli.types import Demonstration, Message, Problem
from tests.support.tasks import gsm8k_file, score, write

TASKS = ["arithmetic", "countdown", "dataset", "gsm8k", "jsonl"]
GSM8K = Path(__file__).parents[2] / "shared" / "data" / "gsm8k" / "train.jsonl"
needs_gsm8k = pytest.mark.skipif(not GSM8K.is_file(), reason="GSM8K's file is not beside this checkout")


def jsonl_file(folder, count=20):
    return write(folder / "mine.jsonl", *[{"prompt": f"Say {n}", "answer": n} for n in range(count)])


def built(name, folder, **settings):
    """The task as the command line builds it, with files of 20 lines where it reads files."""
    node = OmegaConf.merge(OmegaConf.load(CONF_DIR / "task" / f"{name}.yaml"), {"instructions": False})
    files = {"gsm8k": gsm8k_file, "jsonl": jsonl_file, "dataset": jsonl_file}
    if name in files:
        node = OmegaConf.merge(node, {"path": files[name](folder), "heldout": 5})
    return build_task(OmegaConf.merge(node, settings))


def prompts(problems):
    return [problem.messages[-1].content for problem in problems]


@pytest.mark.parametrize("name", TASKS)
def test_the_yaml_lists_every_setting_of_its_task(name):
    node = OmegaConf.load(CONF_DIR / "task" / f"{name}.yaml")
    cls = locate(node.pop("_target_"), "task._target_")
    assert set(node) == {field.name for field in fields(cls)}
    assert node.name == name


@pytest.mark.long
@pytest.mark.parametrize("name", TASKS)
def test_the_reward_accepts_gold_and_refuses_nonsense_and_doing_nothing(name, tmp_path):
    task = built(name, tmp_path)
    problems = [*task.train_problems(), *task.heldout_problems()]
    for problem in problems[:: len(problems) // 1000 + 1]:
        assert score(task, problem, problem.answer).total_reward == 1
        for nonsense in (None, "", " ", "nonsense", problem.answer + "1", problem.messages[-1].content):
            assert score(task, problem, nonsense).total_reward == 0, (problem, nonsense)


@pytest.mark.parametrize("name", TASKS)
def test_the_two_sides_are_disjoint_and_the_same_every_time(name, tmp_path):
    first, again = built(name, tmp_path), built(name, tmp_path)
    train, heldout = prompts(first.train_problems()), prompts(first.heldout_problems())
    assert len(heldout) == (first.heldout or 500)
    assert len(set(train)) == len(train)
    assert set(train).isdisjoint(heldout)
    assert (train, heldout) == (prompts(again.train_problems()), prompts(again.heldout_problems()))


def test_the_held_out_side_is_the_same_in_every_process():
    # pinned: if these move, a resumed run is evaluated on problems that it was trained on
    pinned = [
        (Arithmetic("", "", "", digits=2), ["52+88=", "88+52=", "47+57="]),
        (Arithmetic("", "", "", digits=3), ["705+15=", "893+890=", "617+81="]),
        (Countdown("", "", ""), ["3 4 8 = 6", "2 6 9 = 5", "2 2 4 = 3"]),
    ]
    for task, first in pinned:
        assert [problem.id for problem in task.heldout_problems()[:3]] == first


@pytest.mark.parametrize("name", ["arithmetic", "countdown", "gsm8k"])
def test_demonstrations_solve_training_problems_and_no_others(name, tmp_path):
    task = built(name, tmp_path)
    by_messages = {problem.messages: problem for problem in task.train_problems()}
    demonstrations = task.demonstrations()
    assert len(demonstrations) == len(by_messages)
    for demonstration in demonstrations[:: len(demonstrations) // 1000 + 1]:
        *opening, answer = demonstration.messages
        assert answer.role == "assistant"
        assert score(task, by_messages[tuple(opening)], answer.content).total_reward == 1


@pytest.mark.parametrize("name", TASKS)
def test_holding_everything_out_is_an_error(name, tmp_path):
    with pytest.raises(UserError, match=r"task\.heldout=50000: leaves none of \d+ problems to train on"):
        built(name, tmp_path, heldout=50000).train_problems()


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("arithmetic", "digits", 0),
        ("arithmetic", "digits", 10),
        ("arithmetic", "heldout", 0),
        ("arithmetic", "demonstrations_count", 0),
        ("countdown", "numbers", 1),
        ("countdown", "largest", 100),
        ("countdown", "well_formed_weight", 1.5),
        ("gsm8k", "path", None),
        ("gsm8k", "heldout", 0),
        ("jsonl", "path", None),
        ("jsonl", "verifier", "guess"),
    ],
)
def test_a_setting_out_of_range_is_an_error_that_names_it(name, setting, value, tmp_path):
    with pytest.raises(UserError, match=rf"^task\.{setting}[=:]"):
        built(name, tmp_path, **{setting: value})


def test_two_digit_sums_are_all_there_and_written_in_reverse(tmp_path):
    task = built("arithmetic", tmp_path)
    problems = {problem.id: problem for problem in [*task.train_problems(), *task.heldout_problems()]}
    assert len(problems) == 100 * 100
    assert problems["47+85="].answer == "231"  # 132
    assert score(task, problems["47+85="], "132").component_rewards == {"exact": 0.0}
    forward = built("arithmetic", tmp_path, reversed_answer=False)
    problem = forward.train_problems()[0]
    assert problem.answer == str(sum(problem.metadata["terms"])) == problems[problem.id].answer[::-1]


@pytest.mark.long
def test_a_sum_and_its_mirror_image_are_on_the_same_side():
    for digits in (1, 2, 3):
        task = Arithmetic("arithmetic", "", "", digits=digits, heldout=21)
        sides = (task.train_problems(), task.heldout_problems())
        train, heldout = ({tuple(sorted(p.metadata["terms"])) for p in side} for side in sides)
        assert train.isdisjoint(heldout)


def test_arithmetic_limits_its_demonstrations():
    assert len(Arithmetic("arithmetic", "", "", demonstrations_count=7).demonstrations()) == 7


def test_countdown_pays_a_tenth_for_an_expression_of_the_given_numbers():
    task = Countdown("countdown", "", "")
    problem = Problem("3 5 7 = 22", (), metadata={"numbers": (3, 5, 7), "target": 22})
    for answer in ("3*5+7", "7+5*3", "(7) + 3*5", "3 × 5 + 7 = 22"):
        assert score(task, problem, answer).component_rewards == {"well_formed": 1.0, "exact": 1.0}
    assert score(task, problem, "3+5+7").total_reward == pytest.approx(0.1)
    for answer in ("22", "3*7+1", "3*5+7+0", "5*7-13", "3*5+7=23", "33-11", "3*5", "9**9**9"):
        assert score(task, problem, answer).component_rewards == {"well_formed": 0.0, "exact": 0.0}


def test_countdown_finds_exactly_what_two_numbers_reach():
    assert solutions((2, 6)) == {3: "6/2", 4: "6-2", 8: "2+6", 12: "2*6"}


@pytest.mark.parametrize("numbers", [(1, 1, 2), (3, 5, 7), (2, 3, 8, 8)])
def test_countdown_solutions_have_the_value_and_the_numbers_they_claim(numbers):
    for target, text in solutions(numbers).items():
        expression = evaluate(text)
        assert (expression.value, sorted(expression.numbers)) == (target, sorted(numbers))


def test_countdown_asks_every_problem_of_three_small_numbers(tmp_path):
    task = built("countdown", tmp_path)
    assert len(task.train_problems()) + len(task.heldout_problems()) == 2253


@pytest.mark.long
@needs_gsm8k
def test_every_published_gsm8k_solution_is_accepted():
    task = Gsm8k("gsm8k", "MIT", "", path=str(GSM8K))
    problems = [*task.train_problems(), *task.heldout_problems()]
    assert (len(problems), len(task.heldout_problems()), task.duplicates_dropped) == (7473, 200, 0)
    assert sum("," in problem.answer for problem in problems) == 79  # thousands commas
    for problem in problems:
        assert score(task, problem, problem.metadata["solution"]).component_rewards == {"numeric": 1.0}
        assert score(task, problem, problem.answer.replace(",", "") + "1").total_reward == 0
    shown = [demonstration.messages[-1].content for demonstration in task.demonstrations()]
    assert all("####" in text and "<<" not in text for text in shown)


def test_gsm8k_demonstrations_lose_their_calculator_annotations(tmp_path):
    path = write(tmp_path / "one.jsonl", {"question": "Half of 8?", "answer": "8/2 = <<8/2=4>>4\n#### 4"})
    heldout = write(tmp_path / "two.jsonl", {"question": "Half of 6?", "answer": "#### 3"})
    task = Gsm8k("gsm8k", "MIT", "", path=path, heldout_path=heldout)
    assert task.demonstrations()[0].messages[-1].content == "8/2 = 4\n#### 4"
    assert [problem.id for problem in task.train_problems()] == ["one.jsonl:1"]
    assert prompts(task.heldout_problems()) == ["Half of 6?"]


def test_problems_that_are_held_out_leave_train_and_are_counted(tmp_path):
    path = write(tmp_path / "a.jsonl", *[{"prompt": text, "answer": 1} for text in "uvwuuv"])
    heldout = write(tmp_path / "b.jsonl", {"prompt": "u", "answer": 1})
    task = JsonlTask("jsonl", "", "", path=path, heldout_path=heldout)
    assert sorted(prompts(task.train_problems())) == ["v", "v", "w"]
    assert task.duplicates_dropped == 3
    alone = JsonlTask("jsonl", "", "", path=path, heldout=1)
    assert set(prompts(alone.train_problems())).isdisjoint(prompts(alone.heldout_problems()))
    assert len(alone.train_problems()) + alone.duplicates_dropped == 5


def test_jsonl_reads_conversations_ids_and_numbers(tmp_path):
    turns = [{"role": "system", "content": "S"}, {"role": "user", "content": "2+2?"}]
    rows = [{"id": "sum", "messages": turns, "answer": 4}, "", {"prompt": "0.1+0.4?", "answer": 0.5}]
    path = write(tmp_path / "a.jsonl", *rows)
    task = JsonlTask("jsonl", "", "", path=path, heldout=1, verifier="numeric")
    found = {problem.id: problem for problem in [*task.train_problems(), *task.heldout_problems()]}
    assert found["sum"].messages == (Message("system", "S"), Message("user", "2+2?"))
    assert found["a.jsonl:3"].messages == (Message("user", "0.1+0.4?"),)
    assert [found[name].answer for name in ("sum", "a.jsonl:3")] == ["4", "0.5"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"prompt": "a"', "is not JSON"),
        ("[1]", "is not a JSON object"),
        ('{"answer": "b"}', 'needs "prompt" or "messages"'),
        ('{"prompt": "a", "messages": [], "answer": "b"}', "and not both"),
        ('{"prompt": 3, "answer": "b"}', 'needs "prompt", a non-empty string'),
        ('{"messages": [], "answer": "b"}', "must be a non-empty list"),
        ('{"messages": ["hi"], "answer": "b"}', "invalid message"),
        ('{"messages": [{"role": "robot", "content": "a"}], "answer": "b"}', "invalid message"),
        ('{"messages": [{"role": "assistant", "content": "a"}], "answer": "b"}', "ends with assistant"),
        ('{"prompt": "a"}', 'needs "answer"'),
        ('{"prompt": "a", "answer": " "}', 'needs "answer"'),
        ('{"prompt": "a", "answer": true}', 'needs "answer"'),
        ('{"prompt": "a", "answer": ["b"]}', 'needs "answer"'),
        ('{"prompt": "a", "answer": "b"}', "is not a single number"),
    ],
)
def test_a_bad_line_is_an_error_that_names_file_and_line(line, reason, tmp_path):
    path = write(tmp_path / "bad.jsonl", {"prompt": "a", "answer": 1}, "", line)
    with pytest.raises(UserError, match=rf"bad\.jsonl:3: .*{reason}"):
        JsonlTask("jsonl", "", "", path=path, heldout=1, verifier="numeric").train_problems()


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"question": "q", "answer": "no mark 5"}, "#### number"),
        ({"question": "q", "answer": "#### five"}, "is not a single number"),
        ({"question": "q"}, 'needs "answer"'),
        ({"answer": "#### 5"}, 'needs "question"'),
    ],
)
def test_a_bad_line_of_gsm8k_is_an_error_that_names_file_and_line(row, reason, tmp_path):
    path = write(tmp_path / "bad.jsonl", row)
    with pytest.raises(UserError, match=rf"bad\.jsonl:1: .*{reason}"):
        Gsm8k("gsm8k", "MIT", "", path=path).train_problems()


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "cannot be read"), (b"", "is empty"), (b"\n \n", "is empty"), (b"\xff\xfe", "not UTF-8")],
)
@pytest.mark.parametrize("setting", ["path", "heldout_path"])
def test_a_file_that_cannot_be_used_is_an_error_that_names_its_setting(setting, content, reason, tmp_path):
    bad = tmp_path / "bad.jsonl"
    if content is not None:
        bad.write_bytes(content)
    task = built("jsonl", tmp_path, **{setting: str(bad)})
    with pytest.raises(UserError, match=rf"^task\.{setting}=.*bad\.jsonl: .*{reason}"):
        task.heldout_problems()


def test_demonstration_files_hold_conversations_or_prompts_with_answers(tmp_path):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    path = write(tmp_path / "demos.jsonl", {"messages": turns}, {"prompt": "Bye", "answer": "Goodbye"})
    assert read_demonstrations(path) == [
        Demonstration((Message("user", "Hi"), Message("assistant", "Hello"))),
        Demonstration((Message("user", "Bye"), Message("assistant", "Goodbye"))),
    ]
    silent = write(tmp_path / "silent.jsonl", {"messages": turns[:1]})
    with pytest.raises(UserError, match=r"silent\.jsonl:1: has no assistant message"):
        read_demonstrations(silent)
    with pytest.raises(UserError, match=r"^model\.cold_start\.demonstrations=.*cannot be read"):
        read_demonstrations(str(tmp_path / "absent.jsonl"))


PUBLISHED_TARGETS = {  # as in the config.yaml of finished runs: these names never move
    "gspo_cli.agents.task.AgentTask": {"path": "lines.jsonl", "agent": "mine:run"},
    "gspo_cli.agents.verifiers_task.VerifiersTask": {},
    "gspo_cli.tasks.arithmetic.Arithmetic": {},
    "gspo_cli.tasks.countdown.Countdown": {},
    "gspo_cli.tasks.customer_service.CustomerService": {},
    "gspo_cli.tasks.dataset.DatasetTask": {"path": "lines.jsonl"},
    "gspo_cli.tasks.gsm8k.Gsm8k": {"path": "lines.jsonl"},
    "gspo_cli.tasks.jsonl.JsonlTask": {"path": "lines.jsonl"},
    "gspo_cli.tasks.reasoning_gym.ReasoningGym": {},
    "gspo_cli.tasks.sales.Sales": {},
    "gspo_cli.tasks.scenarios.Scenarios": {"path": "mine.json"},
    "gspo_cli.tasks.tau2.Tau2": {"path": "domains"},
    "gspo_cli.tasks.tau_retail.TauRetail": {"path": "retail"},
    "gspo_cli.tasks.technical_support.TechnicalSupport": {},
    "gspo_cli.tasks.tutoring.Tutoring": {},
}


@pytest.mark.parametrize("target", PUBLISHED_TARGETS)
def test_stored_configurations_keep_building_their_task(target):
    settings = {"name": "x", "license": "", "source": "", **PUBLISHED_TARGETS[target]}
    task = build_task(OmegaConf.create({"_target_": target, **settings}))
    assert isinstance(task, Task)
    assert type(task).__name__ == target.rpartition(".")[2]


@pytest.mark.parametrize("former", MOVED)
def test_a_stored_run_finds_what_has_moved(former):
    assert locate(former, "reward") is locate(MOVED[former], "reward")


def test_every_shipped_target_is_published():
    shipped = {OmegaConf.load(path)._target_ for path in (CONF_DIR / "task").glob("*.yaml")}
    assert shipped <= set(PUBLISHED_TARGETS)
