"""What gspo-compare reads: runs that are whole and of one kind; all others are named, and why."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import asdict, replace

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from gspo_cli.compare.comparison import compare
from gspo_cli.compare.result import Verdict
from gspo_cli.compare.runs import find_runs
from gspo_cli.compare.tables import not_measured
from gspo_cli.config.compare_schema import CompareConfig
from gspo_cli.errors import UserError
from tests.support.stored_runs import changed, stored_run, write_run, write_stored

SEEDS = range(3)


def pair(*seeds, gspo=None, grpo=None, **planned):
    """Runs of both algorithms in memory."""
    return [
        stored_run(name, seed, 20, **planned, **(own or {}))
        for name, own in (("gspo", gspo), ("grpo", grpo))
        for seed in seeds
    ]


@pytest.fixture
def folder(tmp_path):
    """gspo and grpo, three seeds each, as a sweep would leave them."""
    for algorithm in ("gspo", "grpo"):
        for seed in SEEDS:
            write_run(tmp_path / "sweep" / f"{algorithm}-s{seed}", algorithm, seed, 20)
    return tmp_path


def reasons(left_out):
    return {each.folder.rpartition("/")[2]: each.reason for each in left_out}


def test_a_run_folder_a_sweep_and_a_folder_of_sweeps_hold_the_same_runs(folder):
    sweep = folder / "sweep"
    deep, out = find_runs([folder])
    assert [run.folder for run in deep] == sorted(map(str, sweep.iterdir()))
    assert (find_runs([sweep]), find_runs(sorted(sweep.iterdir()))) == ((deep, out), (deep, out))
    assert out == []


def test_a_run_that_is_given_twice_counts_once(folder):
    once = find_runs([folder])
    assert find_runs([folder, folder / "sweep" / "gspo-s0"]) == once


def test_what_was_written_is_what_is_read(folder):
    run = next(run for run in find_runs([folder])[0] if run.folder.endswith("grpo-s2"))
    written = stored_run("grpo", 2, 20)
    assert (run.metrics, run.evals, run.heldout) == (written.metrics, written.evals, written.heldout)
    assert (run.seed, run.status, run.iterations, run.planned) == (2, "completed", 20, 20)


def test_a_default_of_value_heads_that_has_changed_since_means_nothing_to_a_run_without_one(folder):
    new = find_runs([folder])[0]
    for run in sorted((folder / "sweep").glob("*-s1")):
        text = (run / "config.yaml").read_text(encoding="utf-8")
        config = OmegaConf.create(text)
        config.algorithm.value.gae_lambda = 0.95
        (run / "config.yaml").write_text(OmegaConf.to_yaml(config), encoding="utf-8")
    old, out = find_runs([folder])
    assert (out, [run.arm_key for run in old]) == ([], [run.arm_key for run in new])


def test_neither_the_order_of_paths_nor_a_second_time_changes_anything(folder):
    paths = sorted((folder / "sweep").iterdir())
    assert find_runs(paths[::-1]) == find_runs(paths)
    first = compare(*find_runs(paths), CompareConfig())
    assert asdict(compare(*find_runs(paths[::-1]), CompareConfig())) == asdict(first)
    runs, out = find_runs([folder])
    assert asdict(compare(runs[::-1], out, CompareConfig())) == asdict(first)


@pytest.mark.parametrize(
    ("path", "sentence"), [("nowhere", "nowhere: does not exist"), (".", "contains no run")]
)
def test_a_path_without_runs_is_refused(tmp_path, monkeypatch, path, sentence):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=sentence):
        find_runs([tmp_path.__class__(path)])


def cut_in_the_middle(run):
    log = run / "metrics.jsonl"
    lines = log.read_text().split("\n")
    log.write_text("\n".join([*lines[:4], lines[4][:30], *lines[5:]]))


def without_an_iteration(run):
    log = run / "metrics.jsonl"
    lines = log.read_text().split("\n")
    log.write_text("\n".join(lines[:4] + lines[5:]))


def unfinished(run):
    (run / "summary.json").unlink()


def cut_at_the_end(run):
    log = run / "metrics.jsonl"
    log.write_text(log.read_text()[:-40])


def going_on(run):
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"iterations": 15}))


def no_settings(run):
    (run / "config.yaml").write_text("model: [1, 2\n")


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (cut_in_the_middle, "line 5 of metrics.jsonl is damaged"),
        (cut_at_the_end, "line 20 of metrics.jsonl is damaged"),
        (without_an_iteration, "metrics.jsonl has gaps"),
        (unfinished, "has not ended (no summary.json); continue it with gspo-train resume="),
        (going_on, "metrics.jsonl ends at iteration 20, summary.json at 15"),
        (no_settings, "cannot be read as YAML"),
        (lambda run: (run / "evals.jsonl").unlink(), "has no evals.jsonl"),
        (lambda run: (run / "config.yaml").unlink(), "is not a run folder (no config.yaml)"),
        (lambda run: (run / "summary.json").write_text("{"), "summary.json cannot be read"),
        (lambda run: (run / "summary.json").write_bytes(b"\xff"), "summary.json cannot be read"),
    ],
)
def test_a_run_that_is_not_whole_is_left_out_and_said(folder, harm, sentence):
    harm(folder / "sweep" / "grpo-s1")
    runs, out = find_runs([folder])
    assert sentence in reasons(out)["grpo-s1"]
    assert [run.folder[-7:] for run in runs] == ["grpo-s0", "grpo-s2", "gspo-s0", "gspo-s1", "gspo-s2"]
    comparison = compare(runs, out, CompareConfig())
    assert comparison.left_out == out
    assert comparison.contrasts[0].difference.n == 2  # the pair of seed 1 is gone, not averaged


@pytest.mark.parametrize("name", ["x; touch PWNED #", "$(touch PWNED)", "my runs, 'old' (1)", 'a "b"'])
def test_the_advice_on_a_run_that_did_not_end_resumes_the_folder_of_any_name(folder, name):
    write_run(folder / name, "grpo", 7, 20)
    for lost in ("summary.json", "metrics.jsonl"):
        (folder / name / lost).unlink()
        (out,) = find_runs([folder / name])[1]
        _, typed = shlex.split(out.reason[out.reason.index("gspo-train") :])
        assert OverridesParser.create().parse_override(typed).value() == str(folder / name)


@pytest.mark.parametrize("status", ["interrupted", "failed"])
def test_a_run_that_did_not_end_well_is_left_out(folder, status):
    write_run(folder / "other", "grpo", 7, 20, status=status, ends=10)
    runs, out = find_runs([folder])
    assert "after 10 of 20 iterations; continue it" in reasons(out)["other"]
    assert len(runs) == 6


def test_runs_of_other_tasks_and_models_are_found_and_repeat_nothing(folder):
    run = stored_run("gspo", 0, 20)
    write_stored(folder / "task", changed(run, task__name="countdown"))
    write_stored(folder / "model", changed(run, model__label="tiny_moe"))
    runs, out = find_runs([folder])
    assert (len(runs), len({run.subject for run in runs}), out) == (8, 3, [])


def test_of_a_repeated_run_the_longest_counts_then_the_last_by_name(folder):
    write_run(folder / "a-longer", "gspo", 0, 30)
    shutil.copytree(folder / "sweep" / "grpo-s1", folder / "a-copy")
    runs, out = find_runs([folder])
    assert len(runs) == 6
    assert "a-longer is used, which counts for 30 iterations" in reasons(out)["gspo-s0"]
    assert "grpo-s1 is used, the last by name" in reasons(out)["a-copy"]


def test_one_arm_is_not_a_comparison():
    for name, other in (("gspo", "grpo"), ("grpo", "gspo")):
        how = rf"gspo-train -m task=arithmetic model=tiny .* algorithm={other} seed=0,1,2$"
        with pytest.raises(UserError, match=rf"all runs are of {name}: .*: {how}"):
            compare([stored_run(name, seed, 20) for seed in SEEDS], [], CompareConfig())
    with pytest.raises(UserError, match="no run can be compared"):
        compare([], [], CompareConfig())


def test_one_update_per_rollout_is_refused():
    runs = pair(*SEEDS)
    runs[-1] = changed(runs[-1], training__updates_per_rollout=1)
    with pytest.raises(UserError, match=r"the ratio is 1 and nothing clips.*updates_per_rollout=4"):
        compare(runs, [], CompareConfig())


def test_one_seed_gives_no_verdict():
    found = compare(pair(0, gspo={"final": 0.9}), [], CompareConfig())
    assert {contrast.verdict for contrast in found.contrasts} == {Verdict.void}
    assert found.contrasts[0].sentence.startswith("inconclusive with one seed; the difference is 0.")
    assert found.contrasts[0].difference.low is None
    assert "gspo has only one seed: it has no interval and the result is inconclusive." in found.cautions


def test_a_setting_beside_algorithm_and_seed_voids_every_verdict_unless_it_is_asked_for():
    runs = pair(*SEEDS, gspo={"final": 0.9})
    runs = [changed(run, rollout__temperature=0.7) if run.seed == 1 else run for run in runs]
    found = compare(runs, [], CompareConfig())
    both = {"gspo": [0.7, 1.0], "grpo": [0.7, 1.0]}
    assert found.differences == [{"key": "rollout.temperature", "values": both, "allowed": False}]
    assert {contrast.verdict for contrast in found.contrasts} == {Verdict.void}
    assert "compare.allow=[rollout.temperature]" in found.voided[0]
    assert found.headline[0].startswith("Inconclusive")
    for allow in ("rollout.temperature", "rollout"):
        asked = compare(runs, [], CompareConfig(allow=[allow]))
        assert asked.voided == []
        assert asked.contrasts[0].verdict is Verdict.higher
        assert asked.differences[0]["allowed"]


def test_what_is_not_computed_may_differ():
    runs = pair(*SEEDS)
    runs[0] = changed(runs[0], hardware__threads=7, logging__run_name="mine", checkpoint__every=3)
    assert compare(runs, [], CompareConfig()).differences == []


def test_arms_of_one_algorithm_are_named_by_what_is_unusual_of_them():
    grpo = [stored_run("grpo", seed, 20) for seed in SEEDS]
    replay = [changed(run, algorithm__routing_replay=True) for run in grpo]
    wide = [changed(run, algorithm__clip_range_left=0.3) for run in grpo]
    found = compare([*replay, *wide, *grpo], [], CompareConfig())
    assert [arm.name for arm in found.arms] == [
        "grpo clip_range_left=0.3",
        "grpo routing_replay=true",
        "grpo",
    ]
    assert found.baseline == "grpo"
    overrides = found.arms[0].overrides
    assert overrides[:3] == ["task=arithmetic", "model=tiny", "algorithm=grpo"]
    assert "algorithm.clip_range_left=0.3" in overrides
    named = compare([*replay, *grpo], [], CompareConfig(baseline="grpo algorithm.routing_replay=true"))
    assert named.baseline == "grpo routing_replay=true"
    with pytest.raises(UserError, match=r"compare\.baseline=ppo: is not one of the arms"):
        compare([*replay, *grpo], [], CompareConfig(baseline="ppo"))


def test_runs_of_different_lengths_are_compared_where_the_shortest_ends():
    runs = [
        stored_run(name, seed, 20 if name == "gspo" else 40) for name in ("gspo", "grpo") for seed in SEEDS
    ]
    found = compare(runs, [], CompareConfig())
    assert found.voided == []
    assert any("20 to 40 iterations): all are compared at 20" in caution for caution in found.cautions)
    at_20 = next(r for r in runs[-1].evals if r["iteration"] == 20)["score"]
    assert found.arms[-1].runs[-1].outcomes["final_score"] == at_20
    assert max(found.charts[0].series[-1].x) == 20


def test_a_collapsed_run_counts_with_its_last_score():
    lost = {"status": "collapsed", "ends": 15, "collapses_at": 8}
    found = compare(pair(*SEEDS, grpo=lost), [], CompareConfig())
    grpo = found.arms[-1].runs
    assert [run.outcomes["collapses"] for run in grpo] == [1, 1, 1]
    assert [run.outcomes["final_score"] for run in grpo] == [0.05] * 3
    assert found.contrasts[0].verdict is Verdict.higher
    assert any("collapsed before the end of the budget" in caution for caution in found.cautions)
    assert found.headline[-1] == "Collapses: gspo 0 in 3 runs, grpo 3 in 3 runs."


def test_a_run_that_stopped_at_its_score_keeps_it():
    runs = pair(*SEEDS, gspo={"status": "stopped_early", "ends": 10}, every=5)
    found = compare(runs, [], CompareConfig())
    assert found.arms[0].runs[0].outcomes["final_score"] == runs[0].evals[-1]["score"]
    assert found.charts[0].series[0].x[-1] == 20
    start, middle, end = (record["score"] for record in runs[0].evals)  # of iterations 0, 5 and 10
    mean = (start / 2 + middle + end / 2) / 4 + end / 2
    assert found.arms[0].runs[0].outcomes["auc"] == pytest.approx(mean)
    assert any("stopped early at their score keep that score (3 of 3 gspo" in each for each in found.cautions)


def test_runs_that_did_not_begin_alike_are_said():
    runs = pair(*SEEDS)
    evals = [runs[0].evals[0] | {"score": 0.31}, *runs[0].evals[1:]]
    metrics = [runs[0].metrics[0] | {"reward": 0.5}, *runs[0].metrics[1:]]
    near = compare([replace(runs[0], evals=evals, metrics=metrics), *runs[1:]], [], CompareConfig())
    assert near.voided == []
    assert [caution[:7] for caution in near.cautions] == ["Seed 0:", "Seed 0:"]
    evals[0] = evals[0] | {"score": 0.6}
    far = compare([replace(runs[0], evals=evals), *runs[1:]], [], CompareConfig())
    assert "seed 0 did not start from the same weights" in far.voided[0]


def test_other_held_out_problems_void_the_comparison():
    runs = pair(*SEEDS)
    other = [line | {"problems": ["x", *line["problems"][1:]]} for line in runs[0].heldout]
    found = compare([replace(runs[0], heldout=other), *runs[1:]], [], CompareConfig())
    assert found.voided == [
        "The held-out problems are not the same in all runs; evaluate all runs on the same problems."
    ]


def test_older_runs_lack_outcomes_and_the_rest_stands():
    found = compare(pair(*SEEDS, newer=False), [], CompareConfig())
    by_key = {contrast.outcome: contrast for contrast in found.contrasts}
    for key in ("kl_final", "clip_long", "ratio_short", "expert_change"):
        assert (by_key[key].arm.value, by_key[key].verdict) == (None, Verdict.void)
        assert by_key[key].sentence == "not measured"
    for title, metric in (
        ("clipped tokens, long answers", "clip_ratio/long"),
        ("KL to the initial policy", "kl"),
        ("expert change", "moe/expert_change, which only Mixture-of-Experts models do"),
    ):
        assert f"{title} (no run logged {metric})" in not_measured(found)
    assert by_key["clip_token"].arm.value is not None
    assert (found.problem_tests, found.talks, found.shadows) == ([], [], [])
    assert "held_out_kl" not in {chart.key for chart in found.charts}
    assert [claim.measured for claim in found.claims][4] == "not measured here"


def test_conversations_are_of_one_problem_and_seed_and_first_where_arms_differ():
    found = compare(pair(*SEEDS), [], CompareConfig())
    assert [talk.seed for talk in found.talks] == [0, 0, 0]
    alike = [len({answer["reward"] for answer in talk.answers.values()}) == 1 for talk in found.talks]
    assert alike == sorted(alike)
    for talk in found.talks:
        assert {answer["problem_id"] for answer in talk.answers.values()} == {talk.problem_id}


def test_the_commands_that_reproduce_compose_to_what_ran():
    from omegaconf import OmegaConf

    from gspo_cli.compare.arms import overrides
    from gspo_cli.config.compose import composed
    from gspo_cli.run.identity import changed_settings

    run = stored_run("grpo", 3, 20, overrides=("rollout.temperature=0.9", "model.cold_start.steps=5"))
    again = composed([*shlex.split(" ".join(overrides(run))), "seed=3"])
    assert changed_settings(OmegaConf.to_container(again, resolve=True, enum_to_str=True), run.config) == []


@pytest.mark.parametrize(
    "key", ["x; touch PWNED; echo y", "$(touch PWNED)", "a'; touch PWNED; '", "`touch PWNED`", "a b"]
)
def test_no_key_of_a_stranger_stands_in_a_command(key):
    runs = [changed(run, **{f"task__{key}": 1}) for run in pair(*SEEDS)]
    commands = compare(runs, [], CompareConfig()).reproduce
    assert commands[1].endswith("gspo-train resume=gspo-s0-again")
    assert not [command for command in commands if key in command]


@pytest.mark.parametrize("key", ["a] && touch PWNED #", "$(touch PWNED)", "a,b"])
def test_no_key_of_a_stranger_is_to_be_typed_to_allow_a_difference(key):
    first, *others = pair(*SEEDS)
    for given, typed in ((key, ""), ("a", "compare.allow=[task.a]")):
        comparison = compare([changed(first, **{f"task__{given}": 1}), *others], [], CompareConfig())
        (reason,) = comparison.voided
        assert f"task.{given} is not the same in all runs" in reason
        assert reason.partition("allow the difference with ")[2].rstrip(".") == typed


@pytest.mark.parametrize("value", ["'; touch PWNED; '", ["a'; touch PWNED; '"], ["$(touch PWNED)"], "ä ö"])
def test_a_value_of_a_stranger_is_one_argument_of_a_command_and_composes_to_itself(value):
    runs = [changed(run, task__operations=value) for run in pair(*SEEDS)]
    words = shlex.split(compare(runs, [], CompareConfig()).reproduce[1])
    (kept,) = [word for word in words if "task.operations" in word]
    assert OverridesParser.create().parse_override(kept).value() == value
    assert "PWNED" not in " ".join(word for word in words if word != kept)


def test_the_command_of_a_report_has_its_settings():
    settings = CompareConfig(baseline="gspo", smallest=0.1, level=0.9)
    (command, *_) = compare(pair(*SEEDS), [], settings).reproduce
    assert command.endswith(" compare.baseline=gspo compare.level=0.9 compare.smallest=0.1")


def test_options_that_are_not_installed_are_reproduced_from_the_saved_configuration():
    runs = [changed(run, task__name="my_own") for run in pair(*SEEDS)]
    commands = compare(runs, [], CompareConfig()).reproduce
    assert commands[1].endswith("cp gspo-s0/config.yaml gspo-s0-again/ && gspo-train resume=gspo-s0-again")


def test_experts_and_replay_are_measured_where_there_are_experts():
    runs = pair(*SEEDS, expert_change=0.2)
    claims = compare(runs, [], CompareConfig()).claims
    assert "gspo (without replay)" in claims[2].measured
    assert "none with replay" in claims[2].measured
    assert claims[3].measured.startswith("gspo 0.0")
    assert len(claims) == 6
