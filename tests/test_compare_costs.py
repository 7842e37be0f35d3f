"""The costs of a comparison: per point of held-out score, by stage, and of single settings; and arms that
differ outside of their algorithm."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from gspo_cli.compare.arms import arms_of
from gspo_cli.compare.comparison import compare
from gspo_cli.compare.missing_runs import SharedSettings, runs_to_compare
from gspo_cli.compare.report import markdown
from gspo_cli.compare.result import ArmCost, Comparison
from gspo_cli.compare.runs import StoredRun, find_runs, told_apart
from gspo_cli.config.compare_schema import CompareConfig
from gspo_cli.config.compose import composed
from gspo_cli.errors import UserError
from tests.support.stored_runs import stored_run, write_run

SHARE = "training.share_prefixes"
OFF = [f"{SHARE}=off"]


def timed(run: StoredRun, scale: float = 1.0, **stages: float) -> StoredRun:
    """The run with its times scaled, and shares of each iteration's time by stage."""
    lines = []
    for line in run.metrics:
        seconds = line["time/iteration"] * scale
        parts = {f"time/{stage}": share * seconds for stage, share in stages.items()}
        lines.append({**line, "time/iteration": seconds, **parts})
    return replace(run, metrics=lines)


def made_on(run: StoredRun, **machine: Any) -> StoredRun:
    return replace(run, summary={**run.summary, "machine": machine})


def comparison(*arms: list[StoredRun], allow: list[str] | None = None) -> Comparison:
    runs = told_apart([run for arm in arms for run in arm], allow or [])
    return compare(runs, [], CompareConfig(allow=allow or []))


def costs(*arms: list[StoredRun]) -> Mapping[str, ArmCost]:
    return {cost.arm_name: cost for cost in comparison(*arms).costs.arms}


def seeds(algorithm: str, count: int = 3, **planned: Any) -> list[StoredRun]:
    return [stored_run(algorithm, seed, **planned) for seed in range(count)]


def test_costs_per_point_are_ratios_of_means_with_the_interval_that_inverts_the_t_test():
    arm = seeds("gspo", 4, overrides=["hardware.threads=3"])
    cost = costs(arm, seeds("grpo", 4, overrides=["hardware.threads=3"]))["gspo"]
    gains = np.array([100 * (run.evals[-1]["score"] - run.evals[0]["score"]) for run in arm])
    tokens = np.array([run.metrics[-1]["num_tokens"] for run in arm])
    cores = np.array([3 * sum(line["time/iteration"] for line in run.metrics) for run in arm])
    t = stats.t.ppf(0.975, len(arm) - 1)
    assert cost.gain.value == pytest.approx(gains.mean())
    for spent, estimate in ((tokens, cost.tokens_per_point), (cores, cost.time_per_point)):
        assert estimate.value == pytest.approx(spent.mean() / gains.mean())
        for bound, side in ((estimate.low, t), (estimate.high, -t)):  # where spent - bound * gain is rejected
            rest = spent - bound * gains
            error = rest.std(ddof=1) / math.sqrt(len(arm))
            assert rest.mean() / error == pytest.approx(side)


def test_no_cost_is_below_0_however_much_times_differ():
    scales = (0.1, 5, 0.2, 4)
    arm = [timed(run, scale) for run, scale in zip(seeds("gspo", 4), scales, strict=True)]
    cost = costs(arm, seeds("grpo", 4))["gspo"].time_per_point
    assert cost.low == 0 < cost.value < cost.high


@pytest.mark.parametrize(
    ("unit", "width", "overrides", "machine"),
    [
        ("core-seconds", 3, ["hardware.threads=3"], {}),
        ("core-seconds", 10, ["hardware.threads=null"], {"threads": 5, "processes": 2}),
        ("GPU-seconds", 1, ["hardware.device=cuda"], {}),
        ("GPU-seconds", 4, ["hardware.device=cuda"], {"threads": 8, "processes": 4}),
        ("seconds", 1, ["hardware.threads=null"], {}),
        ("seconds", 1, ["hardware.threads=null"], {"threads": "5", "processes": True}),
        ("seconds", 1, ["hardware.threads=null"], {"threads": -5, "processes": 2}),
        ("seconds", 1, ["hardware.threads=null"], {"threads": 10**12}),
    ],
)
def test_machine_time_is_named_for_what_it_is(unit, width, overrides, machine):
    arms = [
        [made_on(run, **machine) for run in seeds(each, overrides=overrides)] for each in ("gspo", "grpo")
    ]
    found = comparison(*arms)
    assert found.costs.unit == unit
    seconds = np.mean([sum(line["time/iteration"] for line in run.metrics) for run in arms[0]])
    (cost, _) = found.costs.arms
    assert cost.time_per_point.value == pytest.approx(width * seconds / cost.gain.value)
    assert f"| {unit[0].upper()}{unit[1:]} per point |" in markdown(found)


def test_runs_that_were_trained_at_once_say_so():
    alone, together = (
        comparison(*([made_on(run, runs_at_once=count) for run in seeds(each)] for each in ("gspo", "grpo")))
        for count in (1, 2)
    )
    assert not [each for each in alone.costs.sentences if "at once" in each]
    (sentence,) = [each for each in together.costs.sentences if "at once" in each]
    assert sentence.startswith("Up to 2 runs were trained at once")


def test_a_clock_that_runs_backwards_gives_no_times():
    backwards = costs([timed(run, -1.0) for run in seeds("gspo")], seeds("grpo"))["gspo"]
    assert (backwards.seconds_per_iteration, backwards.time_per_point.value) == (None, None)
    assert set(
        costs([timed(run, rollout=-0.5) for run in seeds("gspo")], seeds("grpo"))["gspo"].split.values()
    ) == {None}


def without_first(run: StoredRun) -> StoredRun:
    return replace(run, evals=run.evals[1:])


@pytest.mark.parametrize(
    ("arm", "why"),
    [
        (seeds("gspo", final=0.3, noise=0.05), "its gain of held-out score is not significant, "),
        (seeds("gspo", final=0.1), "its held-out score fell, by -"),
        (seeds("gspo", 1), "with one seed the gain has no test"),
        ([without_first(run) for run in seeds("gspo")], "not all of its runs were evaluated before training"),
    ],
)
def test_an_arm_without_a_significant_gain_has_no_cost_per_point_and_says_why(arm, why):
    found = comparison(arm, seeds("grpo"))
    cost, other = found.costs.arms
    assert (cost.tokens_per_point.value, cost.time_per_point.value) == (None, None)
    assert other.tokens_per_point.value is not None
    (sentence,) = [each for each in found.costs.sentences if "no cost" in each]
    assert sentence.startswith(f"gspo has no cost per point: {why}")
    assert sentence in markdown(found)


def test_the_time_of_training_is_split_by_stage_and_a_stage_without_time_has_none():
    arm = [timed(run, rollout=0.5, score=0.125, update=0.25) for run in seeds("gspo")]
    found = costs(arm, seeds("grpo"))
    expected = {"rollout": 0.5, "rewards": 0.0, "scoring": 0.125, "updates": 0.25, "other": 0.125}
    assert found["gspo"].split == pytest.approx(expected)
    assert set(found["grpo"].split.values()) == {None}  # an older run, whose stages were not timed


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("algorithm.routing_replay=true", "With routing replay, grpo routing_replay=true against grpo"),
        ("algorithm.beta=0.01", "With KL to the reference, grpo beta=0.01 against grpo"),
    ],
)
def test_the_price_of_a_setting_is_the_paired_ratio_of_speeds(setting, words):
    with_it = [timed(run, 1.25) for run in seeds("grpo", overrides=[setting])]
    found = comparison(with_it, seeds("grpo"), [timed(run, 1.25) for run in seeds("gspo")])
    price = (
        f"{words}: 0.8 [0.8, 0.8] times the tokens per second, 1.25 [1.25, 1.25] times the time per iteration"
    )
    assert found.costs.sentences[-1] == f"{price} (3 shared seeds)."


def test_the_interval_of_a_price_is_the_t_interval_of_the_logarithms():
    slower = (1.1, 1.2, 1.4)
    with_it = [
        timed(run, each)
        for run, each in zip(seeds("grpo", overrides=["algorithm.beta=0.01"]), slower, strict=True)
    ]
    sentence = comparison(with_it, seeds("grpo")).costs.sentences[-1]
    logs = np.log(slower)
    low, high = np.exp(stats.t.interval(0.95, 2, logs.mean(), stats.sem(logs)))
    assert f"{np.exp(logs.mean()):.3g} [{low:.3g}, {high:.3g}] times the time per iteration" in sentence


def test_runs_with_other_hardware_or_settings_have_no_price():
    dear = ["algorithm.beta=0.01"]
    found = comparison(seeds("grpo", overrides=[*dear, "hardware.threads=2"]), seeds("grpo"))
    assert "no price, as the runs were made with different machines" in found.costs.sentences[-1]
    for other in ("hardware.device=cuda", "training.num_generations=4"):
        found = comparison(seeds("grpo", overrides=[*dear, other]), seeds("grpo"))
        assert not [sentence for sentence in found.costs.sentences if "With KL" in sentence]


def test_arms_that_differ_in_more_or_in_nothing_priced_have_no_price():
    more = seeds("grpo", overrides=["algorithm.beta=0.01", "algorithm.learning_rate=0.001"])
    less = seeds("grpo", overrides=["algorithm.learning_rate=0.001"])
    both = [seeds("grpo", overrides=[f"algorithm.beta={beta}"]) for beta in (0.01, 0.02)]
    for arms in ((more, seeds("grpo")), (less, seeds("grpo")), both):
        assert [each for each in comparison(*arms).costs.sentences if "times the" in each] == []


def test_times_of_different_machines_do_not_compare():
    with_it = [made_on(run, threads=2, cpu="b") for run in seeds("grpo", overrides=["algorithm.beta=0.01"])]
    found = comparison(with_it, [made_on(run, threads=2, cpu="a") for run in seeds("grpo")])
    which = "the runs were made with different machines, numbers of threads or numbers of runs at once."
    assert found.costs.sentences == [
        f"Times do not compare: {which}",
        f"With KL to the reference, grpo beta=0.01 against grpo: no price, as {which}",
    ]


@pytest.fixture
def sharing(tmp_path) -> Path:
    """Runs of one algorithm with prefix sharing and without it, and with KL."""
    for seed in range(2):
        write_run(tmp_path / f"on{seed}", "grpo", seed)
        write_run(tmp_path / f"off{seed}", "grpo", seed, overrides=OFF)
        write_run(tmp_path / f"beta{seed}", "grpo", seed, overrides=["algorithm.beta=0.01"])
    return tmp_path


def test_allowed_settings_in_which_runs_of_one_seed_differ_make_arms(sharing):
    alone, left_out = find_runs([sharing])
    assert (len(alone), len(left_out)) == (4, 2)  # repetitions
    runs, left_out = find_runs([sharing], [SHARE])
    assert left_out == []
    found = compare(runs, left_out, CompareConfig(allow=[SHARE]))
    assert [arm.name for arm in found.arms] == ["grpo beta=0.01", f"grpo {SHARE}=off", "grpo"]
    assert found.voided == []
    kl, off = found.costs.sentences[-2:]
    assert kl.startswith("With KL to the reference, grpo beta=0.01 against grpo: 1 [")
    assert off.startswith(f"Without prefix sharing, grpo {SHARE}=off against grpo: 1 [")
    assert any(f"{SHARE}=off" in command for command in found.reproduce[1:])
    assert composed(found.arms[1].overrides).training.share_prefixes.value == "off"


def test_allowed_settings_that_differ_by_seed_or_in_length_make_no_arms(tmp_path):
    for seed, overrides in enumerate(([], ["rollout.temperature=0.9"])):
        write_run(tmp_path / f"{seed}", "grpo", seed, overrides=overrides)
    write_run(tmp_path / "longer", "grpo", 0, iterations=60)
    runs, _ = find_runs([tmp_path], ["rollout.temperature", "training"])
    assert [(run.seed, run.iterations) for run in next(iter(arms_of(runs, []).values()))] == [
        (0, 60),
        (1, 40),
    ]


def test_one_repetition_with_an_allowed_setting_makes_no_arms(tmp_path):
    wide = ["rollout.batch_size=7"]
    for seed in range(4):
        for name in ("gspo", "grpo"):
            write_run(tmp_path / f"{name}{seed}", name, seed, overrides=wide if seed > 1 else [])
    write_run(tmp_path / "again", "gspo", 0, overrides=wide)
    runs, left_out = find_runs([tmp_path], ["rollout.batch_size"])
    assert [len(own) for own in arms_of(runs, []).values()] == [4, 4]
    assert [Path(each.folder).name for each in left_out] in (["again"], ["gspo0"])


def test_runs_without_tokens_or_time_have_no_price(sharing):
    for log in sharing.glob("off*/metrics.jsonl"):
        lines = [json.loads(line) | {"num_tokens": 0} for line in log.read_text().splitlines()]
        log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = compare(*find_runs([sharing], [SHARE]), CompareConfig(allow=[SHARE]))
    assert "no price, as there are no timed runs with the same seed" in found.costs.sentences[-1]


def test_entries_that_would_be_one_arm_are_refused_before_training_and_what_to_type_is_said():
    entries = ["grpo", f"grpo {OFF[0]}"]
    shared = SharedSettings(["task=arithmetic"])
    with pytest.raises(UserError, match=rf"differ only in {SHARE}, .* add compare.allow=\[{SHARE}\]"):
        runs_to_compare(shared, CompareConfig(algorithms=entries))
    found = runs_to_compare(
        shared, CompareConfig(algorithms=entries, allow=[SHARE], baseline=entries[1], seeds=[0])
    )
    assert [run.entry for run in found] == entries
