"""Whole runs on a file of preference pairs: they go on, learn, and say nothing that they did not measure."""

from __future__ import annotations

import io
import json
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from rich.console import Console

from gspo_cli.console.live import LiveConsole
from gspo_cli.console.plain import PlainConsole
from gspo_cli.console.words import describe, next_commands, why_zero
from gspo_cli.diagnosis.diagnosis import diagnose
from gspo_cli.diagnosis.examination import examine
from gspo_cli.diagnosis.guide import guide
from gspo_cli.diagnosis.history import Finding, History, Severity
from gspo_cli.rewards.base import RewardFunction
from gspo_cli.run.folder import RunFolder
from gspo_cli.tasks.arithmetic import Arithmetic
from gspo_cli.types import RewardResult
from tests.support.command_line import ROOT, environment, gspo_train, script
from tests.support.diagnosed_runs import only, settings
from tests.support.tasks import write
from tests.support.whole_runs import SMALL, assert_same_run, dotted, numbers

ROWS = [
    {"prompt": f"{a}+{b}=", "chosen": str(a + b)[::-1], "rejected": str(a + b + 1)[::-1]}
    for a in range(10)
    for b in range(6)
]
HELD = {
    p.messages[0].content for p in Arithmetic("arithmetic", "", "", digits=1, heldout=20).heldout_problems()
}
LEFT_OUT = sum(row["prompt"] in HELD for row in ROWS)
OF_ANSWERS = ("reward", "rewards/", "solved", "frac_", "completions/", "num_turns", "turns_", "sampling/")
OF_RATIOS = ("clip_", "approx_kl", "ratio/mean", "ratio/std", "ratio/m", "ratio/short", "ratio/long", "kl")


@pytest.fixture(scope="module")
def begin(tmp_path_factory):
    """`begin(folder, iterations)`: the arguments of a run with an adapter, whose reference is the model
    without it."""
    path = write(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", *ROWS)
    given = ["training.num_generations=2", "model.use_lora=true", "algorithm.learning_rate=0.001"]

    def arguments(folder, iterations):
        place = [f"training.num_outer_iterations={iterations}", f"hydra.run.dir={folder}"]
        return [*SMALL, "algorithm=dpo", f"algorithm.pairs={path}", *given, *place]

    return arguments


@pytest.fixture(scope="module")
def whole(begin, tmp_path_factory):
    """Four iterations without a stop."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    done = gspo_train(*begin(folder, 4))
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.fixture(scope="module")
def path(whole):
    """The file of pairs."""
    return Path(json.loads((whole[0] / "summary.json").read_text())["pairs"])


@pytest.mark.long
def test_a_longer_run_continues_a_shorter_one_to_the_bit(whole, begin, tmp_path):
    folder = tmp_path / "run"
    assert gspo_train(*begin(folder, 2)).returncode == 0
    done = gspo_train(f"resume={folder}", "training.num_outer_iterations=4")
    assert done.returncode == 0, done.stderr
    assert_same_run(folder, whole[0])


@pytest.mark.long
def test_a_killed_run_is_resumed_to_the_bit(whole, begin, tmp_path, warm_python):
    folder = tmp_path / "run"
    command = script("gspo-train", *begin(folder, 4), python=warm_python)
    with subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL) as running:
        end = time.monotonic() + 90
        while len(RunFolder(folder).read("metrics.jsonl")) < 3 and time.monotonic() < end:
            time.sleep(0.01)
        running.send_signal(signal.SIGKILL)
    assert len(RunFolder(folder).read("metrics.jsonl")) >= 3
    done = gspo_train(f"resume={folder}")
    assert done.returncode == 0, done.stderr
    assert_same_run(folder, whole[0])


def test_what_was_not_measured_is_not_logged(whole):
    folder, said = whole
    for line in numbers(folder):
        assert [name for name in line if name.startswith((*OF_ANSWERS, *OF_RATIOS))] == []
        assert line["preference/pairs"] == 8
        assert 0 < line["loss"] < 1
        assert line["preference/margin"] == pytest.approx(
            line["preference/chosen"] - line["preference/rejected"], abs=1e-6
        )
    assert numbers(folder)[-1]["epoch"] == pytest.approx(4 * 8 / (60 - LEFT_OUT))
    for sample in RunFolder(folder).read("samples.jsonl"):
        row = ROWS[int(sample["problem_id"].removeprefix("pairs.jsonl:")) - 1]
        answer = row["chosen" if sample["advantage"] > 0 else "rejected"]
        assert [m["content"] for m in sample["messages"]] == [row["prompt"], answer]
        assert (sample["reward"], sample["turns"], sample["expected"]) == (None, 1, row["chosen"])
    assert f"algorithm.pairs: {LEFT_OUT} of 60 pairs are left out, the first in" in said
    assert "16 answers -> 4 updates of 4 answers" in said
    assert f"epochs of {60 - LEFT_OUT} pairs" in said
    assert "rollout.old_logprobs=recompute:" not in said  # a pair has no old policy
    assert "in place of sampled answers" in said
    assert "w_t" not in said
    assert "reward " not in said
    assert "one update per rollout" not in said


def test_the_summary_and_the_doctor_speak_of_pairs(whole, path):
    folder, _ = whole
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["first_reward"], summary["last_reward"]) == (None, None)
    lines = numbers(folder)
    first, last = (lines[place]["preference/accuracy"] for place in (0, -1))
    sentences = describe(summary)
    assert f"The share of pairs in the right order went from {first:.3f} to {last:.3f}." in sentences
    assert "tokens of the answers of pairs were trained on; the run took" in sentences[-1]
    assert not any("sampled" in sentence or "reward" in sentence for sentence in sentences)
    assert why_zero(lines[-1] | {"updates": 1}) == ""
    # against the same algorithm on the model's own answers: another one has another number of answers
    command, why = next_commands(summary)[-1]
    rate = "algorithm.learning_rate=0.001"
    assert f'["dpo {rate} algorithm.pairs={path}","dpo {rate}"]' in command
    assert "the model's own answers" in why
    report = examine(folder)
    assert {finding.rule for finding in report.findings} <= {"chosen_fell", "held_out_fell"}
    assert f"preference/accuracy {first:.3g} to {last:.3g}" in report.verdict
    assert "the loss went from 0.6" in report.guide[0].what


def test_no_rule_takes_a_run_on_pairs_for_one_without_rewards():
    def line(iteration, **more):
        return {
            "iteration": iteration,
            "loss": 0.69 - 0.02 * iteration,
            "entropy": 0.5**iteration,
            "grad_norm": 1.0,
            "learning_rate": 1e-5,
            "updates": 4,
            "preference/accuracy": 0.9,
            "preference/chosen": 0.1,
            "length/short_mean": 2.0,
            "length/long_mean": 4.0,
        } | more

    config = settings("algorithm=dpo", "algorithm.pairs=pairs.jsonl")
    assert diagnose(config, [line(i) for i in range(1, 12)]) == []
    fallen = [line(i, **{"preference/chosen": -0.02 * i}) for i in range(1, 12)]
    # 0.1 nats per token of 3, times beta 0.1: from 0.03 on
    finding = only(diagnose(config, fallen))
    assert (finding.rule, finding.since) == ("chosen_fell", 2)
    assert "the better answers of pairs are 0.733 nats per token less likely" in finding.what
    mean = settings("algorithm=dpo", "algorithm.pairs=pairs.jsonl", "algorithm.aggregation=sequence_mean")
    assert only(diagnose(mean, fallen)).since == 1  # 0.1 nats per token from 0.01 on


def test_the_guides_entry_asks_whether_the_loss_of_the_pairs_falls():
    config = settings("algorithm=dpo", "algorithm.pairs=pairs.jsonl")
    right = {"preference/accuracy": 0.4, "updates": 4}
    risen = [{"iteration": i, "loss": 0.69 + 0.01 * i, **right} for i in range(1, 12)]
    entry, _, steadiness = guide(History(config, risen), [], None)
    assert (entry.ok, entry.settings) == (False, ("training.num_outer_iterations=200",))
    assert entry.what == "the loss went from 0.72 to 0.78; the share of pairs in the right order is 0.4"
    assert "num_generations" not in entry.fix + steadiness.fix
    fallen = [{**line, "loss": 1 - line["loss"]} for line in risen]
    assert guide(History(config, fallen), [], None)[0].ok
    unsteady = Finding("chosen_fell", Severity.warning, "", "", 1)
    fix = guide(History(config, risen), [unsteady], None)[2].fix
    assert fix.endswith("training.generations_per_iteration=512, algorithm.beta=0.2")


def test_a_line_of_the_console_has_what_there_is():
    shown = io.StringIO()
    console = PlainConsole(shown, clock=lambda: 0.0)
    console.begin("t", "c", 2, 0)
    of_pairs = {"preference/pairs": 8, "preference/accuracy": 0.75, "preference/margin": 0.125, "updates": 1}
    console.iteration({"iteration": 1, **of_pairs})
    console.iteration({"iteration": 2, "reward": 0.5, "reward_std": 0.1, **of_pairs})
    stored, online = shown.getvalue().splitlines()[1:]
    assert stored.startswith("iteration  1/2  held-out –  pairs 0.750 margin 0.125  lr")
    assert online.startswith(
        "iteration  2/2  reward 0.500 ±0.10  held-out –  pairs 0.750 margin 0.125  len –"
    )


def test_the_live_view_has_pairs_in_the_place_of_clips():
    console = LiveConsole(Console(file=io.StringIO(), width=100, color_system=None))
    console.begin("t", "c", 3, 0)
    of_pairs = {"preference/pairs": 8, "preference/accuracy": 0.75, "preference/margin": 0.125, "updates": 1}
    console.iteration({"iteration": 1, **of_pairs})
    console.iteration({"iteration": 2, **of_pairs, "preference/accuracy": 0.875})
    page = Console(file=io.StringIO(), width=100, color_system=None)
    page.print(console.frame())
    console.close()
    frame = page.file.getvalue()
    assert re.search(r"accuracy +0\.875 +▁█", frame)
    assert re.search(r"margin +0\.125", frame)
    assert not re.search(r"reward +0|±|clip", frame)


class Twos(RewardFunction):
    """Share of an answer's characters that are a 2."""

    def compute_reward(self, trajectory, turn, context):
        text = trajectory.answer
        return RewardResult(text.count("2") / max(1, len(text)))


@pytest.mark.long
@pytest.mark.parametrize(("chosen", "rises"), [("2", True), ("3", False)])
def test_held_out_answers_become_those_that_are_chosen(tmp_path, chosen, rises):
    other = "3" if chosen == "2" else "2"
    rows = [{**row, "chosen": chosen * 2, "rejected": other * 2} for row in ROWS]
    path = write(tmp_path / "pairs.jsonl", *rows)
    small = [text for text in SMALL if not text.startswith(("reward=", "training.gen", "training.num_gen"))]
    done = gspo_train(
        *small, "algorithm=dpo", f"algorithm.pairs={path}", "training.generations_per_iteration=80",
        "algorithm.learning_rate=2e-3", "model.cold_start.steps=40", "training.num_outer_iterations=12",
        "evaluation.problems=20", "evaluation.every=0", dotted(Twos), f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    before, after = (line["reward"] for line in RunFolder(tmp_path / "run").read("evals.jsonl"))
    lines = numbers(tmp_path / "run")
    assert lines[-1]["preference/accuracy"] > 0.95
    assert lines[-1]["loss"] < 0.5 * lines[0]["loss"]
    assert examine(tmp_path / "run").guide[0].ok
    assert (after > 0.8) if rises else (after < 0.1), (before, after)


@pytest.mark.long
def test_a_changed_file_is_refused_and_accepted_by_a_flag(whole, path, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole[0], folder, symlinks=True)
    content = path.read_text()
    try:
        path.write_text(content.replace('"chosen": "9"', '"chosen": "8"'))
        done = gspo_train(f"resume={folder}", "training.num_outer_iterations=5")
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert f"algorithm.pairs={path} has changed since this run began; restore the file" in done.stderr
        assert (folder / "metrics.jsonl").read_bytes() == (whole[0] / "metrics.jsonl").read_bytes()
        done = gspo_train(f"resume={folder}", "training.num_outer_iterations=5", "--changed-data")
        assert done.returncode == 0, done.stderr
    finally:
        path.write_text(content)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["algorithm=dpo", "algorithm.pairs=none.jsonl"], "algorithm.pairs=none.jsonl: is not a file; give"),
        (["algorithm=dpo", "algorithm.pairs=a.jsonl"], "a.jsonl:2: is not JSON"),
        (["algorithm=dpo", "algorithm.pairs=b.jsonl"], 'b.jsonl:1: needs "rejected", a non-empty string'),
        (
            ["algorithm=dpo", "algorithm.pairs=c.jsonl"],
            "use training.generations_per_iteration=2 training.upd",
        ),
        (["algorithm=dpo", "algorithm.pairs="], "algorithm.pairs='': is empty"),
        (["algorithm=gspo", "algorithm.pairs=c.jsonl"], "is what algorithm=dpo trains on; use that, or"),
        (
            ["algorithm=dpo", "algorithm.pairs=c.jsonl", "training.num_generations=4"],
            "training.num_generations=4: a pair of algorithm.pairs has two answers; use",
        ),
    ],
)
def test_bad_input_is_one_sentence_before_a_model_is_built(tmp_path, overrides, sentence):
    write(tmp_path / "a.jsonl", ROWS[0], "{")
    write(tmp_path / "b.jsonl", {"prompt": "1+1=", "chosen": "2"})
    write(tmp_path / "c.jsonl", ROWS[0])
    small = [text for text in SMALL if not text.startswith(("reward=", "training.num_gen"))]
    done = gspo_train(*small, *overrides, "hydra.run.dir=run", cwd=tmp_path)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert sentence in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "fix"),
    [
        ("algorithm.truncated_completions=mask", "use algorithm.truncated_completions=keep"),
        ("algorithm.overlong_buffer=0.2", "use algorithm.overlong_buffer=0"),
        ("algorithm.dynamic_sampling=true", "use algorithm.dynamic_sampling=false"),
        ("training.length_curriculum_start=4", "use training.length_curriculum_start=null"),
    ],
)
def test_settings_about_sampled_answers_are_refused(tmp_path, override, fix):
    done = gspo_train("algorithm=dpo", "algorithm.pairs=a.jsonl", override, cwd=tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert fix in done.stderr
