"""A difficulty curriculum: when the level rises, what is drawn, and that nothing held out is trained on."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import ClassVar
from zlib import crc32

import pytest
import torch
from omegaconf import OmegaConf

from gspo_cli.config.compose import CONF_DIR, build_config, build_task, load_saved
from gspo_cli.console.plain import PlainConsole
from gspo_cli.console.words import describe
from gspo_cli.errors import UserError
from gspo_cli.rewards.base import RewardFunction
from gspo_cli.run.folder import RunFolder
from gspo_cli.tasks.base import Task
from gspo_cli.tasks.levels import levels_of
from gspo_cli.training.checkpoint import Checkpoints, TrainerState
from gspo_cli.training.cold_start import prepare_model
from gspo_cli.training.curriculum import Curriculum
from gspo_cli.training.session import evaluate_only
from gspo_cli.training.sharing import ALONE
from gspo_cli.training.strategy import OneProcess
from gspo_cli.training.update import Updater
from gspo_cli.types import Demonstration, Message, Problem, RewardResult
from tests.support.command_line import gspo_train
from tests.support.reporters import Silent
from tests.support.whole_runs import assert_same_run, dotted, numbers, run

pytestmark = pytest.mark.long


class Even(RewardFunction):
    """Share of sampled ids that are even, which can be learned. What counts as solved is as good as drawn, so
    that some evaluations reach a threshold and others do not."""

    def compute_reward(self, trajectory, turn, context):
        ids = [t for t, spoken in zip(trajectory.token_ids, trajectory.action_mask, strict=True) if spoken]
        solved = crc32(repr((trajectory.problem.id, ids)).encode()) % 2 == 0
        return RewardResult(sum(t % 2 == 0 for t in ids) / len(ids), solved=solved)


LEVELED = [
    "task=arithmetic",
    "task.digits=3",
    "task.heldout=20",
    "training.difficulty_curriculum_start=1",
    "training.difficulty_curriculum_raise_at=0.6",
    "training.num_outer_iterations=9",
    "evaluation.every=2",
    "evaluation.problems=10",
    "checkpoint.every=4",
    "checkpoint.keep=5",
    "algorithm.learning_rate=0.001",
    dotted(Even),
]


@pytest.fixture(scope="module")
def leveled(configure, tmp_path_factory):
    """A run whose level rises to the last one."""
    folder, reporter = tmp_path_factory.mktemp("leveled"), Silent()
    summary, found = run(configure(*LEVELED), folder, reporter)
    return summary, found, reporter


def test_the_level_rises_exactly_where_an_evaluation_reaches_the_threshold(leveled):
    _, folder, reporter = leveled
    evals = {line["iteration"]: line for line in folder.read("evals.jsonl")}
    level, expected = 1, {}
    for iteration in range(1, 10):
        before = evals.get(iteration - 1)
        if before is not None:
            assert (before["curriculum/level"], before["curriculum/target"]) == (level, 3)
            level += before["curriculum/score"] >= 0.6
        expected[iteration] = level
    assert list(expected.values()) == [1, 1, 1, 1, 2, 2, 2, 2, 3]  # 0.5, 0.5, 0.6; 0.4, 0.6
    assert {m["iteration"]: m["curriculum/level"] for m in folder.read("metrics.jsonl")} == expected
    assert [text for text in reporter.warnings if text.startswith("curriculum: ")] == [
        f"curriculum: problems of task.digits={digits} are trained on from now on" for digits in (2, 3)
    ]


def test_problems_are_drawn_from_the_level_and_its_epochs_count_anew(leveled, configure):
    _, folder, _ = leveled
    config, _ = configure(*LEVELED)
    by_level = {level.number: level for level in levels_of(config.task, 1)}
    drawn = {sample["iteration"]: sample["problem_id"] for sample in folder.read("samples.jsonl")}
    for line in folder.read("metrics.jsonl"):
        level = by_level[line["curriculum/level"]]
        assert drawn[line["iteration"]] in {problem.id for problem in level.train}
        first = {1: 0, 2: 4, 3: 8}[level.number]
        assert line["epoch"] == 4 * (line["iteration"] - first) / len(level.train)  # 4 problems an iteration
    assert {len(number) for number in drawn[9].strip("=").split("+")} == {3}


def test_the_scores_are_those_of_an_evaluation_of_task_and_level(leveled):
    summary, folder, _ = leveled
    last = folder.read("evals.jsonl")[-2]  # at iteration 8, of which there is a checkpoint
    assert (last["iteration"], last["curriculum/level"]) == (8, 2)
    model = str(folder.checkpoints / "iteration-000008")
    node = load_saved(folder.config)
    for digits, score in ((3, last["score"]), (2, last["curriculum/score"])):
        node.task.digits, node.training.difficulty_curriculum_start = digits, None
        record, _ = evaluate_only(build_config(node), model, None, lambda *_: None, lambda _: None)
        assert record["score"] == score
    assert summary["final_eval"]["curriculum/level"] == 3
    assert "The curriculum reached its last level, 3." in describe(summary)
    below = {"curriculum/level": 2, "curriculum/score": 0.25}
    sentences = describe(summary | {"final_eval": summary["final_eval"] | below})
    assert "The curriculum ended at level 2 of 3, whose own held-out score is 0.250." in sentences


def test_the_console_shows_the_level(leveled):
    _, folder, _ = leveled
    written = io.StringIO()
    console = PlainConsole(written)
    console.begin("title", "card", 9, 0)
    console.evaluation(folder.read("evals.jsonl")[2])
    console.iteration(folder.read("metrics.jsonl")[4])
    held_out, iteration = written.getvalue().splitlines()[1:]
    assert held_out.endswith("(10 problems)  level 1 0.600")
    assert "  level 2  " in iteration


def test_a_run_that_stops_within_a_level_goes_on_to_the_bit(leveled, configure, tmp_path, reporter):
    _, whole, _ = leveled
    run(configure(*LEVELED, "training.num_outer_iterations=5"), tmp_path, reporter)
    done = gspo_train("--trust", f"resume={tmp_path / 'run'}", "training.num_outer_iterations=9")
    assert done.returncode == 0, done.stderr
    for log in ("evals.jsonl", "heldout.jsonl"):  # the shorter run evaluated at its end, too
        lines = [line for line in RunFolder(tmp_path / "run").read(log) if line["iteration"] != 5]
        (tmp_path / "run" / log).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert_same_run(tmp_path / "run", whole.path)
    states = [
        torch.load(folder / "checkpoints" / "last" / "trainer.pt", weights_only=True)["state"]["curriculum"]
        for folder in (tmp_path / "run", whole.path)
    ]
    assert states == [(2, 32)] * 2


def test_the_evaluations_that_decide_cannot_change_on_resume(leveled):
    _, folder, _ = leveled
    for changed in ("evaluation.every=1", "evaluation.problems=5"):
        longer = "training.num_outer_iterations=10"
        done = gspo_train("--trust", f"resume={folder.path}", changed, longer)
        assert done.returncode == 2
        assert f"{changed.split('=')[0]}: decides when the level of the curriculum rises" in done.stderr


def test_without_a_curriculum_nothing_is_drawn_or_logged_differently(configure, tmp_path, reporter):
    off, _ = run(configure(*LEVELED, "training.difficulty_curriculum_start=null",
                           "training.num_outer_iterations=2"), tmp_path / "off", reporter)  # fmt: skip
    one, _ = run(configure(*LEVELED, "training.difficulty_curriculum_start=3",
                           "training.num_outer_iterations=2"), tmp_path / "one", reporter)  # fmt: skip
    assert off["iterations"] == one["iterations"] == 2
    for log in ("metrics.jsonl", "evals.jsonl"):
        plain, leveled = (numbers(tmp_path / name / "run", log) for name in ("off", "one"))
        assert not any(key.startswith("curriculum/") for line in plain for key in line)
        assert plain == [
            {key: value for key, value in line.items() if not key.startswith("curriculum/")}
            for line in leveled
        ]


# The decision by itself


def curriculum(configure, *overrides):
    config, _ = configure(*LEVELED, *overrides)
    return Curriculum(config, levels_of(config.task, config.training.difficulty_curriculum_start))


def test_only_regular_evaluations_decide_and_one_level_at_a_time(configure):
    of_run = curriculum(configure, "evaluation.every=5")
    assert not of_run.rise(1.0, 7, 40)  # the end of a run, which a longer one does not evaluate
    assert not of_run.rise(None, 5, 40)  # all conversations were excluded
    assert not of_run.rise(0.59, 5, 40)
    assert of_run.rise(0.6, 5, 40)
    assert (of_run.level.number, of_run.state) == (2, (1, 40))
    assert of_run.rise(1.0, 10, 60)
    assert not of_run.rise(1.0, 15, 80)  # there is no higher level
    assert (of_run.level.number, of_run.at_target) == (3, True)


def test_a_rollback_returns_the_level_with_the_weights(load, configure, tmp_path):
    config, _ = configure(*LEVELED)
    updater = Updater(load("qwen3"), config, OneProcess(load("qwen3"), config), ALONE)
    checkpoints = Checkpoints(tmp_path, config.checkpoint)
    checkpoints.save(updater, TrainerState(iteration=4, cursor=16, curriculum=(0, 0)))
    checkpoints.save(updater, TrainerState(iteration=6, cursor=24, curriculum=(1, 16)))
    assert checkpoints.roll_back(4, updater).curriculum == (0, 0)
    assert checkpoints.restore(tmp_path / "iteration-000006", updater).curriculum == (1, 16)


# What a level has


def built(name, **settings):
    return build_task(OmegaConf.merge(OmegaConf.load(CONF_DIR / "task" / f"{name}.yaml"), settings))


GENERATED = {
    "customer_service": ("difficulty", 1, 3, {"problems": 60, "heldout": 30, "answer_length": 24}),
    "arithmetic": ("digits", 1, 3, {}),
    "countdown": ("numbers", 2, 3, {"heldout": 50}),
    "technical_support": ("faults", 1, 2, {"answer_length": 24}),
    "reasoning_gym": ("level", 0, 2, {"dataset": "leg_counting", "problems": 60, "heldout": 30}),
}


@pytest.mark.parametrize("name", GENERATED)
def test_what_a_level_or_a_later_one_holds_out_is_not_trained_on_before(name):
    if name == "reasoning_gym":
        pytest.importorskip("reasoning_gym", reason="the extra `reasoning` is not installed")
    key, start, target, settings = GENERATED[name]
    task = built(name, **settings, instructions=False, **{key: target})
    levels = levels_of(task, start)
    assert [level.number for level in levels] == list(range(start, target + 1))
    for place, level in enumerate(levels):
        train = {content(problem) for problem in level.train}
        assert train
        assert level.task.problem_key(level.train[0]) == task.problem_key(level.train[0])
        for later in levels[place:]:
            assert train.isdisjoint(content(problem) for problem in later.heldout)
    if name == "reasoning_gym":  # whose levels have questions in common
        assert [len(level.withheld) for level in levels] == [1, 1, 0]
    assert levels[-1].task is task
    assert levels[-1].train == task.train_problems()
    assert levels[-1].heldout == task.heldout_problems()


def content(problem):
    """What a problem is, whatever the order of its numbers; words of a user are the same for many phones."""
    if "terms" in problem.metadata:
        return str(sorted(problem.metadata["terms"]))
    return repr(([m.content for m in problem.messages], sorted(map(str, problem.metadata.get("faults", ())))))


@dataclass
class Numbers(Task):
    """The numbers below 10 * size. The last digit says what is held out: at a larger size also numbers that a
    smaller one trains on."""

    DIFFICULTY: ClassVar[str | None] = "size"
    size: int = 1

    def train_problems(self):
        return [problem for problem in self._all if int(problem.id) % 10 < 7]

    def heldout_problems(self):
        return [problem for problem in self._all if int(problem.id) % 10 >= 10 - 3 * self.size]

    def demonstrations(self):
        return [Demonstration((*p.messages, Message("assistant", "yes"))) for p in self.train_problems()]

    @property
    def _all(self):
        return [Problem(str(n), (Message("user", str(n)),)) for n in range(10 * self.size)]


def test_problems_that_a_later_level_holds_out_are_neither_trained_on_nor_demonstrated():
    first, second = levels_of(Numbers("numbers", "", "", size=2), 1)
    # level 2 holds out the numbers that end in 4 to 9, and trains itself on 4, 5 and 6 as it says
    assert [problem.id for problem in first.train] == ["0", "1", "2", "3"]
    assert [problem.id for problem in first.heldout] == ["7", "8", "9"]
    assert [shown.messages[0].content for shown in first.demonstrations()] == ["0", "1", "2", "3"]
    assert [problem.id for problem in second.train] == [p.id for p in second.task.train_problems()]
    (alone,) = levels_of(first.task)
    assert len(alone.train) == len(alone.demonstrations()) == 7


def test_a_level_without_problems_is_named():
    with pytest.raises(UserError, match=r"^task\.size=3: all training problems are held out at later levels"):
        levels_of(Numbers("numbers", "", "", size=4), 1)
    with pytest.raises(UserError, match=r"^task\.numbers=2: task\.heldout=200: leaves none of 138 problems"):
        levels_of(built("countdown", numbers=3, instructions=False), 2)


def test_the_cold_start_shows_the_first_level(configure, tmp_path):
    config, _ = configure(*LEVELED, "task.digits=2", "model.cold_start.cache=false")
    one, two = levels_of(config.task, 1)
    weights = {}
    for name, given in {"both": [one, two], "first": [one], "second": [two]}.items():
        prepare_model(config, given, tmp_path / name, lambda *_: None)
        weights[name] = (tmp_path / name / "model.safetensors").read_bytes()
    assert weights["both"] == weights["first"] != weights["second"]  # all have the words of sums


def test_the_embedded_model_knows_the_words_of_all_levels(configure, tmp_path):
    config, _ = configure(
        "task=customer_service", "task.difficulty=2", "task.problems=40", "task.heldout=5",
        "model.cold_start.steps=0", "model.cold_start.cache=false",
    )  # fmt: skip
    levels, words = levels_of(config.task, 1), {}
    for name, given in {"both": levels, "first": levels[:1]}.items():
        prepare_model(config, given, tmp_path / name, lambda *_: None)
        words[name] = set(json.loads((tmp_path / name / "tokenizer.json").read_text())["model"]["vocab"])
    # what a customer begins a second request with
    assert {"\u0120thanks", "thanks", "good"} & (words["both"] - words["first"])


# Refusals


REFUSED = {
    "training.difficulty_curriculum_start=1 task=sales": "task=sales has no setting of difficulty; use",
    "training.difficulty_curriculum_start=2": "=2: is above task.difficulty=1, to which it rises; use",
    "training.difficulty_curriculum_start=0": "=0: task.difficulty=0: must be between 1 and 4; give 2",
    "training.difficulty_curriculum_start=1 task=arithmetic": "rises to task.digits, which is not set; use",
    "training.difficulty_curriculum_start=1 task=arithmetic task.digits=2 task.largest=40": (
        "rises by task.digits, which task.largest=40 replaces; use task.largest=null task.digits=2"
    ),
    "training.difficulty_curriculum_start=1 task.difficulty=2 evaluation.every=0": (
        "evaluation.every=0 has none during training; use evaluation.every=5"
    ),
    "training.difficulty_curriculum_start=1e30": "=1e+30: give a whole number, or null",
    "training.difficulty_curriculum_raise_at=1e30": "=1e+30: is a held-out score and must be above 0 and at",
    "training.difficulty_curriculum_raise_at=0": "=0.0: is a held-out score and must be above 0",
    "training.difficulty_curriculum_start=1 task.difficulty=2 task.max_turns=7": "use at least 8",
}


@pytest.mark.parametrize("given", REFUSED)
def test_a_curriculum_that_cannot_be_is_refused_in_one_sentence(given):
    done = gspo_train(*given.split(), "hydra.run.dir=/nonexistent/run")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert REFUSED[given] in line
    assert len(line) < 220
