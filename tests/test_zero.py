"""Two ranks on the CPU do what one process does, under DeepSpeed ZeRO-1, 2 and 3."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gspo_cli.config.choices import Device
from gspo_cli.errors import UserError
from gspo_cli.launching.processes import LaunchResult, launch
from gspo_cli.run.folder import RunFolder
from gspo_cli.training.zero import imported
from tests.support.command_line import ROOT, alive, environment, gspo_train
from tests.support.rank_steps import steps
from tests.support.tasks import write
from tests.support.whole_runs import SMALL

pytestmark = pytest.mark.long

pytest.importorskip("deepspeed", reason="deepspeed is not installed")

OFFLOAD = "hardware.offload=true"
AGAIN = "model.gradient_checkpointing=true"
REPLAY = "model.use_lora=false model.freeze_router=false algorithm.routing_replay=true"
EXPERTS = "model.use_lora=true model.lora_experts=true"
CRITIC = "algorithm=ppo algorithm.value.coefficient=0.05 algorithm.value.learning_rate=0.1"
ENTROPY = "algorithm=dapo algorithm.entropy_coefficient=0.5"
PASSES = "training.passes=2 training.target_kl=10"
# the auxiliary loss is one of each micro-batch: with a sequence in each the layout is the same
AUXILIARY = "model.router_aux_loss=0.1 hardware.tokens_per_microbatch=1"
CASES = {
    "1 in 8 bits": ("qwen3", "hardware.zero_stage=1 model.use_lora=true model.use_8bit=true"),
    "2 dense full": ("qwen3", "hardware.zero_stage=2 model.use_lora=false algorithm.beta=0.1"),
    "2 in 4 bits": ("qwen3", "hardware.zero_stage=2 model.use_lora=true model.use_4bit=true"),
    "2 replay": ("qwen3_moe", f"hardware.zero_stage=2 algorithm=grpo {REPLAY} {AUXILIARY} {PASSES}"),
    "3 dense lora": ("qwen3", f"hardware.zero_stage=3 model.use_lora=true algorithm.beta=0.1 {AGAIN}"),
    "3 dense full": ("qwen3", f"hardware.zero_stage=3 model.use_lora=false {OFFLOAD} {ENTROPY}"),
    "3 moe experts": ("qwen3_moe", f"hardware.zero_stage=3 {EXPERTS} {PASSES}"),
    "2 critic": ("qwen3", f"hardware.zero_stage=2 model.use_lora=false {CRITIC}"),
    "3 critic": ("qwen3", f"hardware.zero_stage=3 model.use_lora=true {CRITIC}"),
    "3 replay": ("qwen3_moe", f"hardware.zero_stage=3 {REPLAY} {AUXILIARY}"),
}  # fmt: skip


PYTHON = sys.executable


@pytest.fixture(scope="module", autouse=True)
def _ranks_start_at_once(warm_python):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", warm_python)
        yield


@pytest.fixture(scope="module")
def cases(tmp_path_factory, folders, configure):
    """The folders of all cases after one start of two ranks, and each case's configuration."""
    root = tmp_path_factory.mktemp("cases")
    configs = {}
    for case, (model, overrides) in CASES.items():
        folder = root / case.replace(" ", "_").replace(",", "")
        folder.mkdir()
        config, yaml = configure(
            "model.label=case",
            f"model.name={folders[model]}",
            "hardware.processes=2",
            "hardware.tokens_per_microbatch=60",
            "training.updates_per_rollout=2",
            "algorithm.learning_rate=1e-3",
            "algorithm.clip_range_left=0.02",
            "algorithm.clip_range_right=0.02",
            *overrides.split(),
        )
        (folder / "config.yaml").write_text(yaml)
        configs[case] = (config, folder)
    command = [
        sys.executable,
        "-m",
        "tests.support.rank_steps",
        *(str(folder) for _, folder in configs.values()),
    ]
    ended = launch(command, 2, root / "logs")
    assert ended == LaunchResult(0), (root / "logs" / "rank-1.log").read_text()
    return configs


def expected_steps(config) -> int:
    """Of two iterations, the first of which may go over its answers more than once."""
    return 2 * config.training.updates_per_iteration


def near(record: dict, tolerance: float = 1e-5) -> dict:
    """`record` within rounding. A correlation divides rounding of 1e-7 by the spread of the weights, which
    after one small step is about 1e-4."""
    return {
        key: pytest.approx(value, rel=0, abs=1e-3 if key.endswith("weight_correlation") else tolerance)
        if isinstance(value, float)
        else value
        for key, value in record.items()
    }


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_take_the_steps_of_one_process(cases, case, tmp_path):
    # 12 conversations in 2 minibatches; the second time a single one has work, and a rank is idle; the third
    # time after a return to what was saved
    config, folder = cases[case]
    expected = steps(config, Path(config.model.name), tmp_path, ranks=None)
    for one, two in zip(expected, json.loads((folder / "metrics.json").read_text()), strict=True):
        assert two == near(one)
        assert one["grad_norm"] > 1e-3
    [weights] = tmp_path.glob("*.safetensors")
    whole, divided = load_file(weights), load_file(folder / weights.name)
    assert whole.keys() == divided.keys()
    for name, value in whole.items():
        torch.testing.assert_close(divided[name], value, rtol=0, atol=1e-5)
    # AdamW's first moment is a running mean of the gradient
    moments, others = (torch.load(f / "optimizer.pt") for f in (tmp_path, folder))
    groups, other_groups = (found["param_groups"] for found in (moments, others))
    assert [group | {"fused": None} for group in groups] == [g | {"fused": None} for g in other_groups]
    for index, state in moments["state"].items():
        assert others["state"][index]["step"] == state["step"] == expected_steps(config)
        for moment in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(others["state"][index][moment], state[moment], rtol=0, atol=1e-6)


def ranks(stage: int, processes: int = 2) -> list[str]:
    return [f"hardware=zero{stage}", "hardware.device=cpu", "hardware.precision=fp32",
            "hardware.tokens_per_microbatch=1024", f"hardware.processes={processes}"]  # fmt: skip


def train(folder: Path, *overrides: str) -> subprocess.CompletedProcess:
    return gspo_train(*SMALL, f"hydra.run.dir={folder}", *overrides)


def read(folder: Path, log: str) -> list[dict]:
    """A log without what measures time, memory or room."""
    kept = ("time/", "memory/", "tokens_per_")
    lines = RunFolder(folder).read(log)
    return [{k: v for k, v in line.items() if not k.startswith(kept)} for line in lines]


LONG = ("training.num_outer_iterations=5000", "evaluation.every=2", "checkpoint.every=5000")


def until(condition) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def train_until(folder: Path, stage: int, act) -> tuple[subprocess.CompletedProcess, float]:
    """A long run on two ranks, with `act` after its first iteration; and the seconds from then to its end.

    The launcher is this process. After a minute the ranks are killed."""
    began = []

    def wait_and_act() -> None:
        until(lambda: RunFolder(folder).read("metrics.jsonl"))
        began.append(time.monotonic())
        act()
        time.sleep(60)
        for rank in workers_of(folder).values():
            os.kill(rank, signal.SIGKILL)

    threading.Thread(target=wait_and_act, daemon=True).start()
    done = train(folder, *ranks(stage), *LONG)
    return done, time.monotonic() - began[0]


def workers_of(folder: Path) -> dict[int, int]:
    """Process ids by rank of the workers that train in `folder`."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes().split(b"\0")
            if b"gspo_cli.commands.worker" in words and str(folder).encode() in words:
                variables = dict(
                    v.split(b"=", 1) for v in (place / "environ").read_bytes().split(b"\0") if b"=" in v
                )
                found[int(variables[b"RANK"])] = int(place.name)
        except OSError:  # it ended in the meantime
            continue
    return found


def test_a_killed_rank_ends_the_run_with_its_message(tmp_path):
    done, seconds = train_until(
        tmp_path / "run", 2, lambda: os.kill(workers_of(tmp_path / "run")[1], signal.SIGKILL)
    )
    assert seconds < 15
    assert done.returncode == 1
    assert "rank 1 of 2 was killed by SIGKILL" in done.stderr.splitlines()[-1]
    assert f"resume={tmp_path / 'run'}" in done.stderr.splitlines()[-1]
    assert len(done.stderr.splitlines()) == 1
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "failed"
    assert workers_of(tmp_path / "run") == {}


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """The folder of a run under stage 3 that Ctrl-C ended, and how it ended."""
    folder = tmp_path_factory.mktemp("interrupted") / "run"
    return folder, train_until(folder, 3, lambda: os.kill(os.getpid(), signal.SIGINT))[0]


def test_ctrl_c_ends_all_ranks_after_the_iteration_with_a_checkpoint(interrupted):
    folder, done = interrupted
    assert done.returncode == 130
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert (folder / "checkpoints" / f"iteration-{summary['iterations']:06d}").is_dir()
    assert workers_of(folder) == {}


def test_a_run_goes_on_under_another_stage_and_number_of_ranks(interrupted, tmp_path):
    for copy in ("two", "alone"):
        shutil.copytree(interrupted[0], tmp_path / copy, symlinks=True)
    reached = json.loads((interrupted[0] / "summary.json").read_text())["iterations"]
    longer = [f"training.num_outer_iterations={reached + 2}"]
    whole = train(tmp_path / "whole", *longer)
    two = gspo_train(f"resume={tmp_path / 'two'}", "hardware.zero_stage=2", *longer)
    one = gspo_train(f"resume={tmp_path / 'alone'}", "hardware.zero_stage=0", "hardware.processes=1", *longer)
    for done in (whole, two, one):
        assert done.returncode == 0, done.stderr
    for folder in ("two", "alone"):
        for log in ("metrics.jsonl", "evals.jsonl", "samples.jsonl", "heldout.jsonl"):
            assert (
                read(tmp_path / folder, log) == [near(line) for line in read(tmp_path / "whole", log)] != []
            )


def test_pairs_of_a_file_are_the_run_of_one_process_on_two_ranks(tmp_path):
    rows = [{"prompt": f"{n}+1=", "chosen": f"{n + 1}"[::-1], "rejected": f"{n}"} for n in range(10)]
    small = [text for text in SMALL if not text.startswith(("reward=", "training.num_gen"))]
    settings = ["algorithm=dpo", f"algorithm.pairs={write(tmp_path / 'pairs.jsonl', *rows)}"]
    settings += ["training.generations_per_iteration=12", "training.updates_per_rollout=2"]
    settings += ["algorithm.learning_rate=1e-3", "training.num_outer_iterations=3"]
    one = gspo_train(*small, *settings, f"hydra.run.dir={tmp_path / 'one'}")
    two = gspo_train(*small, *settings, *ranks(3), f"hydra.run.dir={tmp_path / 'two'}")
    assert (one.returncode, two.returncode) == (0, 0), one.stderr + two.stderr
    for log in ("metrics.jsonl", "samples.jsonl"):
        lines = read(tmp_path / "one", log)
        assert read(tmp_path / "two", log) == [near(line) for line in lines] != []
    assert lines[0]["problem_id"].startswith("pairs.jsonl:")


def test_the_level_of_a_curriculum_rises_on_all_ranks_where_it_does_in_one_process(tmp_path):
    leveled = ["task.digits=2", "training.difficulty_curriculum_start=1", "training.num_outer_iterations=5",
               "evaluation.every=1", "training.difficulty_curriculum_raise_at=0.5",
               "reward=tests.test_curriculum.Even"]  # fmt: skip
    for name, settings in (("two", ranks(2)), ("alone", ["hardware.tokens_per_microbatch=1024"])):
        done = train(tmp_path / name, *settings, *leveled)
        assert done.returncode == 0, done.stderr
    for log in ("metrics.jsonl", "evals.jsonl", "samples.jsonl"):
        assert read(tmp_path / "two", log) == [near(line) for line in read(tmp_path / "alone", log)] != []
    levels = [line["curriculum/level"] for line in read(tmp_path / "two", "metrics.jsonl")]
    assert levels == [1, 1, 1, 2, 2]


def test_a_killed_launcher_leaves_no_worker_behind(tmp_path):
    worker = (
        "import os, sys, time; from gspo_cli.config.schema import HardwareConfig\n"
        "from gspo_cli.training.process_group import join\n"
        "join(HardwareConfig(processes=2, zero_stage=1))\n"
        "open(f'{sys.argv[1]}/pid-{os.getpid()}', 'w').close(); time.sleep(60)"
    )
    command = [PYTHON, "-c", worker, str(tmp_path)]
    code = (
        "from pathlib import Path; from gspo_cli.launching.processes import launch\n"
        f"launch({command!r}, 2, Path({str(tmp_path / 'logs')!r}))"
    )
    with subprocess.Popen([PYTHON, "-c", code], cwd=ROOT, env=environment()) as launcher:
        until(lambda: len(list(tmp_path.glob("pid-*"))) == 2 or launcher.poll() is not None)
        workers = [int(path.name.removeprefix("pid-")) for path in tmp_path.glob("pid-*")]
        assert sum(map(alive, workers)) == 2
        launcher.kill()
    killed = time.monotonic()
    until(lambda: not any(map(alive, workers)))
    assert time.monotonic() - killed < 20


def test_a_worker_that_starts_after_its_launcher_is_gone_ends(tmp_path):
    gone = subprocess.Popen([PYTHON, "-c", ""])
    gone.wait()
    code = (
        "import time; from gspo_cli.training.process_group import _end_with_parent; "
        "_end_with_parent(); time.sleep(60)"
    )
    worker = subprocess.run(
        [PYTHON, "-c", code],
        cwd=ROOT,
        env=os.environ | {"GSPO_LAUNCHER": str(gone.pid)},
        timeout=50,
    )
    assert worker.returncode == 1


def test_two_nodes_meet_under_torchrun(tmp_path):
    prepared = train(
        tmp_path / "run", *ranks(2, processes=1), "hardware.nodes=2", "training.num_outer_iterations=2"
    )
    assert prepared.returncode == 0, prepared.stderr
    assert "torchrun --nnodes 2 --nproc-per-node 1" in prepared.stdout
    command = [PYTHON, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1",
               "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:29731", "--local-addr", "localhost",
               "-m", "gspo_cli.commands.worker", str(tmp_path / "run")]  # fmt: skip
    nodes = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    said = [node.communicate(timeout=200)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "completed"
    assert len(RunFolder(tmp_path / "run").read("metrics.jsonl")) == 2


def test_without_deepspeed_there_is_a_sentence(monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setitem(sys.modules, "deepspeed", None)  # not there to be imported
    with pytest.raises(UserError, match=r"^hardware\.zero_stage: deepspeed is not installed; pip install"):
        imported(Device.cpu)
