"""`gspo-doctor`: a run's folder in, a diagnosis and what to type out; bad input is one sentence."""

from __future__ import annotations

import io
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from rich.console import Console

from gspo_cli.commands.doctor import lines, show
from gspo_cli.config.choices import AdvantageScale
from gspo_cli.diagnosis.diagnosis import diagnose
from gspo_cli.diagnosis.examination import commands, examine, own_overrides, read_numbers
from gspo_cli.diagnosis.guide import estimated_parts, guide
from gspo_cli.diagnosis.history import History
from gspo_cli.errors import UserError
from tests.support.command_line import call
from tests.support.diagnosed_runs import run_of, settings

ROOT = Path(__file__).parent.parent
LOST = {"reward": 0.02, "reward_std": 0.02}


def make_run(folder: Path, metrics: list[dict], *overrides: str) -> Path:
    """A run folder with these lines."""
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(settings(*overrides).plain)))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in metrics))
    return folder


def doctor(*arguments: str) -> subprocess.CompletedProcess:
    return call("gspo-doctor", *arguments)


def test_the_first_line_is_the_verdict(tmp_path):
    healthy = lines(examine(make_run(tmp_path / "a", run_of(20))))
    assert (
        healthy[0]
        == "healthy: 20 of 100 iterations of gspo on customer_service, model tiny, reward 0.21 to 0.61"
    )
    assert "Next:" not in healthy
    broken = make_run(tmp_path / "b", run_of(20, 12, **LOST, excluded=1))
    assert lines(examine(broken))[0].startswith("2 findings: 20 of 100 iterations")
    noted = make_run(tmp_path / "c", run_of(20, 1, updates=1), "training.updates_per_rollout=1")
    report = examine(noted)
    assert report.verdict.startswith("healthy")
    assert [finding.rule for finding in report.findings] == ["one_update"]


def test_a_piped_report_is_plain_and_says_what_since_when_and_what_to_type(tmp_path):
    done = doctor(str(make_run(tmp_path / "run", run_of(20, 12, **LOST))))
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert (
        "collapse  reward_fell, since iteration 12: the reward fell from 0.378 (mean to iteration 11) to 0.02"
        in done.stdout
    )
    assert "use algorithm.learning_rate=5e-05" in done.stdout
    for entry in ("loss not decreasing: ", "high memory: ", "instability: "):
        assert sum(line.startswith(entry) for line in done.stdout.splitlines()) == 1
    assert f"  gspo-train resume={tmp_path}/run training.on_collapse=rollback\n" in done.stdout


def test_json_is_one_line_that_holds_all_of_it(tmp_path):
    done = doctor(str(make_run(tmp_path / "run", run_of(20, 12, **LOST))), "--json")
    assert len(done.stdout.splitlines()) == 1
    report = json.loads(done.stdout)
    assert list(report) == ["run", "verdict", "unread", "findings", "guide", "commands"]
    finding = report["findings"][0]
    assert (finding["rule"], finding["severity"], finding["since"]) == ("reward_fell", "collapse", 12)
    assert finding["settings"] == ["algorithm.learning_rate=5e-05"]
    assert [entry["entry"] for entry in report["guide"]] == [
        "loss not decreasing",
        "high memory",
        "instability",
    ]


@pytest.mark.parametrize("width", [80, 100])
def test_on_a_terminal_nothing_is_wider_than_it_but_commands_which_stay_whole(tmp_path, width):
    report = examine(make_run(tmp_path / "run", run_of(20, 12, **LOST)))
    file = io.StringIO()
    show(report, Console(file=file, width=width, force_terminal=True, color_system=None))
    shown = file.getvalue().splitlines()
    typed = [f"  {command}" for command, _ in report.commands]
    assert all(command in shown for command in typed)
    assert all(len(line) <= width for line in shown if line not in typed)
    assert any(line.startswith("collapse") for line in shown)


def test_the_doctor_loads_no_heavy_library(tmp_path):
    make_run(tmp_path / "run", run_of(20, 12, **LOST))
    code = (
        "import sys; sys.argv = ['gspo-doctor', sys.argv[1]]\n"
        "from gspo_cli.commands.doctor import main\nmain()\n"
        "print(*sorted({'torch', 'transformers', 'peft', 'deepspeed'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "\n")


def damaged(tmp_path: Path, text: str) -> Path:
    folder = make_run(tmp_path / "run", [])
    (folder / "metrics.jsonl").write_bytes(text.encode("utf-8", "surrogateescape"))
    return folder


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no iterations yet"),
        ("\n\n", "has no iterations yet"),
        ('{"iteration": 1, "rew', "cannot be read from line 1 on"),
        ("\udcff\udcfe\0", "cannot be read from line 1 on"),
        ("[1, 2]\n", "cannot be read from line 1 on"),
        ('{"reward": 1.0}\n', "cannot be read from line 1 on"),
        ('{"iteration": "three"}\n', "cannot be read from line 1 on"),
    ],
)
def test_a_run_without_a_readable_iteration_is_said_in_one_sentence(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        examine(damaged(tmp_path, text))


def test_what_is_no_run_is_said_in_one_sentence_with_exit_code_2(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.yaml").write_text("training: {lr: 1}\n")
    (tmp_path / "empty").mkdir()
    for folder, message in (
        (tmp_path / "nowhere", "is not a folder"),
        (ROOT / "README.md", "is not a folder"),
        (tmp_path / "empty", "is not a run folder (no config.yaml)"),
        (tmp_path / "other", "has no model settings"),
        (damaged(tmp_path, ""), "has no iterations yet"),
    ):
        done = doctor(str(folder))
        assert (done.returncode, done.stdout) == (2, "")
        assert len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith(f"gspo-doctor: {folder}")
        assert message in done.stderr


@pytest.mark.parametrize(
    "key", ["algorithm.learning_rate", "training.num_generations", "model.presets.token"]
)
def test_a_setting_of_the_wrong_kind_is_said_in_one_sentence(tmp_path, key):
    folder = make_run(tmp_path / "run", run_of(5))
    broken = OmegaConf.load(folder / "config.yaml")
    OmegaConf.update(broken, key, "many")
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(broken))
    done = doctor(str(folder))
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    named = "model: " if key == "model.presets.token" else f"{key}=many: give a "
    assert f"{folder}/config.yaml: {named}" in done.stderr


def test_a_damaged_log_is_diagnosed_as_far_as_it_can_be_read(tmp_path):
    folder = make_run(tmp_path / "run", run_of(20, 12, **LOST))
    whole = (folder / "metrics.jsonl").read_bytes()
    (folder / "metrics.jsonl").write_bytes(whole[:-30])
    report = examine(folder)
    assert report.unread == "metrics.jsonl cannot be read from line 20 on; this report ends at iteration 19"
    assert [finding.rule for finding in report.findings] == ["reward_fell"]
    assert report.unread in lines(report)[1]
    cut = whole.split(b"\n")
    (folder / "metrics.jsonl").write_bytes(b"\n".join([*cut[:6], b'{"iteration": 7, \xff', *cut[7:]]))
    assert "line 7 on" in examine(folder).unread
    assert examine(folder).verdict.startswith("healthy: 6 of 100")


def test_values_that_are_no_numbers_are_passed_over(tmp_path):
    strange = run_of(12, 1, reward="high", entropy=None, grad_norm=[1], kl=float("nan"))
    assert examine(make_run(tmp_path / "run", strange)).verdict.startswith(("healthy", "1 finding"))


OVERRIDES = [
    ["task=arithmetic", "training.generations_per_iteration=1024", "seed=3"],
    ["algorithm=grpo", "model=small", "model.name=some/where", "training.length_curriculum_start=8"],
    ["hardware=single_gpu", "model=large", "model.name='/data/my model (1)'", "logging=wandb"],
    ["hardware=zero3", "hardware.processes=2", "model=moe", "model.name=x", "logging.wandb_tags=[a,'b c']"],
    ["algorithm.clip_mode=none", "algorithm.clip_range_left=null", "evaluation.stop_at_score=0.9"],
]


@pytest.mark.parametrize("overrides", OVERRIDES, ids=lambda o: o[0])
def test_the_command_of_a_run_makes_its_settings_again(overrides):
    config = settings(*overrides)
    again = own_overrides(config)
    words = shlex.split(" ".join(again))  # as a shell takes them
    assert settings(*words) == config
    assert len(again) <= len(overrides) + 3


def test_a_new_run_takes_the_changes_and_a_stopped_one_what_may_change_on_the_way(tmp_path):
    folder = tmp_path / "run"
    config, lost = settings("seed=3", "algorithm.learning_rate=0.01"), run_of(20, 12, **LOST)
    back, again = commands(folder, config, lost, diagnose(config, lost))
    assert back[0] == f"gspo-train resume={folder} training.on_collapse=rollback"
    assert shlex.split(again[0])[0] == "gspo-train"
    assert settings(*shlex.split(again[0])[1:]) == settings("seed=3", "algorithm.learning_rate=0.0001")
    # where the run is over, nothing is left to return to
    ended = settings("training.num_outer_iterations=20")
    assert [why for _, why in commands(folder, ended, lost, diagnose(ended, lost))] == [again[1]]
    short = run_of(12, 12, oom_events=1, tokens_per_microbatch=512)
    resumed = f"gspo-train resume={folder} hardware.tokens_per_microbatch=512"
    assert [command for command, _ in commands(folder, config, short, diagnose(config, short))] == [resumed]


def test_a_run_whose_options_or_reward_are_not_ours_gets_the_changes_alone(tmp_path):
    config, lost = settings("training.num_outer_iterations=20"), run_of(20, 12, **LOST)
    config.task["name"] = "dice"
    told = commands(tmp_path, config, lost, diagnose(config, lost))
    assert told == [
        ("gspo-train ... algorithm.learning_rate=5e-05", "a new run: your settings with these changes")
    ]
    config.reward = "python object x.Y"
    assert commands(tmp_path, config, lost, diagnose(config, lost)) == []


def answers(lines, card=None, *overrides):
    config = settings(*overrides)
    return {a.entry: a for a in guide(History(config, lines), diagnose(config, lines), card)}


def test_the_guides_entries_are_fine_in_a_run_that_learns():
    found = answers(run_of(20))
    assert list(found) == ["loss not decreasing", "high memory", "instability"]
    assert all(answer.ok for answer in found.values())
    assert "the reward is what matters, and it rose from 0.258 to 0.562" in found["loss not decreasing"].what
    assert "peak 1.5 GiB, memory never ran out" in found["high memory"].what
    assert "no updates dropped" in found["instability"].what


def test_a_loss_that_does_not_decrease_names_the_cause_or_says_that_there_is_none():
    equal = answers(run_of(12, 1, reward=0.2, frac_reward_zero_std=0.95))["loss not decreasing"]
    assert not equal.ok
    assert "see equal_groups" in equal.what
    assert "algorithm.dynamic_sampling=true" in equal.settings
    still = answers(run_of(12, 1, reward=0.2))["loss not decreasing"]
    assert (
        "no rule explains it: use training.num_outer_iterations=200, or algorithm.learning_rate=0.0003"
        in still.fix
    )
    fast = answers(run_of(12, 1, reward=0.2), None, "algorithm.learning_rate=0.001")["loss not decreasing"]
    assert (
        "or algorithm.learning_rate=0.0001; what sharpens the signal: training.num_generations=16" in fast.fix
    )


SMALL = ["model=small", "model.name=x", "hardware.tokens_per_microbatch=8192"]
GIB = 2**30
UPDATE = {"weights": GIB, "optimizer": GIB // 10, "activations": 2 * GIB, "buckets": 10}
CARD = {"memory": {"phases": {"update": UPDATE, "rollout": {"weights": GIB, "cache": GIB // 2}}}}


def test_what_lowers_memory_stands_in_the_order_of_its_effect():
    assert estimated_parts(CARD) == pytest.approx({"weights": 1, "optimizer": 0.1, "activations": 2})
    found = answers(run_of(12), CARD, *SMALL, "model.gradient_checkpointing=false")
    memory = found["high memory"]
    assert "the card's estimate of its parts is activations 2, weights 1, " in memory.what
    places = [
        memory.fix.index(text)
        for text in (
            "model.gradient_checkpointing=true (about 1.6 GiB less)",
            "hardware.tokens_per_microbatch=4096 (about 1 GiB less)",
            "model.use_4bit=true (about 0.7 GiB less)",
        )
    ]
    assert places == sorted(places)
    assert "adamw_8bit" not in memory.fix  # 0.06 GiB are not worth it


def test_memory_that_ran_out_is_answered_with_the_largest_saving():
    lines = run_of(12, 12, oom_events=1, tokens_per_microbatch=512)
    memory = answers(lines, CARD, *SMALL, "model.gradient_checkpointing=true")["high memory"]
    assert not memory.ok
    assert "memory ran out 1 time" in memory.what
    assert memory.settings == ("hardware.tokens_per_microbatch=4096",)


def test_instability_gathers_what_is_unstable():
    found = answers(run_of(12, 8, **LOST))["instability"]
    assert not found.ok
    assert "see reward_fell" in found.what
    assert "training.on_collapse=rollback" in found.settings
    others = found.fix.partition("what else steadies a run: ")[2].split(", ")
    assert others == [
        "training.num_generations=16",
        "algorithm.clip_range_left=0.0001 algorithm.clip_range_right=0.000133 (narrower)",
        "rollout.max_completion_length=16",
        "training.length_curriculum_start=8",
        "algorithm.beta=0.01",
    ]
    typed = [text for each in others for text in each.split() if "=" in text]
    assert settings(*typed).algorithm.clip_range == (0.0001, 0.000133)  # all of them can be typed


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        (lambda i: 3e6, "the mean reward is 3.0M: penalties and what counts as solved are not"),
        (
            lambda i: 1e6 if i % 5 == 0 else 0.2,
            "was over 100 in 8 of 40 iterations, at most 1.0M, and usually 0.2",
        ),
        (lambda i: -1e4 if i == 33 else 0.2, "was over 100 in 1 of 40 iterations, at most 10.0k"),
        (
            lambda i: 30.0 if i % 9 == 0 else 0.2,
            "rewards of 4 of 40 iterations are extreme: 30, where three quarters",
        ),
    ],
)
def test_extreme_rewards_are_found_whatever_divides_them(reward, said):
    lines = run_of(40, 1, reward=reward)
    assert settings().algorithm.advantage_scale is AdvantageScale.group_std
    [found] = [f for f in diagnose(settings(), lines) if f.rule in ("reward_scale", "reward_outliers")]
    assert said in found.what
    assert "clamps, or takes a logarithm" in found.fix
    answered = answers(lines)["instability"]
    assert not answered.ok
    assert found.rule in answered.what.partition("; see ")[2].split(", ")


def test_a_reward_that_grows_tenfold_is_no_outlier():
    lines = run_of(60, 1, reward=lambda i: 0.05 if i < 40 else 0.95)
    assert not [f for f in diagnose(settings(), lines) if f.rule == "reward_outliers"]


def test_rows_read_like_the_records_that_they_hold(tmp_path):
    records = [
        *run_of(50),
        {"iteration": 51, "grad_norm": None, "late/name": 3, "reward": 1e300, "text": "x"},
    ]
    make_run(tmp_path, records)
    rows, damaged = read_numbers(tmp_path / "metrics.jsonl")
    assert damaged is None
    for row, record in zip(rows, records, strict=True):
        kept = {name: value for name, value in record.items() if isinstance(value, int | float)}
        assert dict(row) == kept
        assert len(row) == len(kept)
        assert row["iteration"] == record["iteration"]
        assert isinstance(row["iteration"], int)
        assert [row.get(name) for name in kept] == list(kept.values())
        assert row.get("no such name", 7) == 7
        assert "no such name" not in row
    assert diagnose(settings(), rows) == diagnose(settings(), records)
