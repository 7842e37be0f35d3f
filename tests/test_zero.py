"""Two ranks on the CPU do what one process does, under DeepSpeed ZeRO-1, 2 and 3."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gspo_cli.launching.processes import LaunchResult, launch
from gspo_cli.run.folder import RunFolder
from tests.rank_steps import steps
from tests.test_resume import SMALL

pytest.importorskip("deepspeed", reason="deepspeed is not installed")

ROOT = Path(__file__).parent.parent
REPLAY = "model.use_lora=false model.freeze_router=false algorithm.routing_replay=true"
# the auxiliary loss is one of each micro-batch: with a sequence in each the layout is the same
AUXILIARY = "model.router_aux_loss=0.1 hardware.tokens_per_microbatch=1"
CASES = {
    "1 dense lora": ("qwen3", "hardware.zero_stage=1 model.use_lora=true"),
    "2 dense lora": ("qwen3", "hardware.zero_stage=2 model.use_lora=true algorithm.beta=0.1"),
    "2 dense full": ("qwen3", "hardware.zero_stage=2 model.use_lora=false algorithm.beta=0.1"),
    "2 moe full": ("qwen3_moe", "hardware.zero_stage=2 model.use_lora=false model.freeze_router=false"),
    "3 dense lora": ("qwen3", "hardware.zero_stage=3 model.use_lora=true algorithm.beta=0.1"),
    "3 dense full": ("qwen3", "hardware.zero_stage=3 model.use_lora=false algorithm=dapo"),
    "3 moe full": ("qwen3_moe", "hardware.zero_stage=3 model.use_lora=false model.freeze_router=false"),
    "2 moe experts": ("qwen3_moe", "hardware.zero_stage=2 model.use_lora=true model.lora_experts=true"),
    "3 moe experts": ("qwen3_moe", "hardware.zero_stage=3 model.use_lora=true model.lora_experts=true"),
    "2 in 4 bits": ("qwen3", "hardware.zero_stage=2 model.use_lora=true model.use_4bit=true"),
    "1 in 8 bits": ("qwen3", "hardware.zero_stage=1 model.use_lora=true model.use_8bit=true"),
    "2 replay": ("qwen3_moe", f"hardware.zero_stage=2 algorithm=grpo {REPLAY} {AUXILIARY}"),
    "3 replay": ("qwen3_moe", f"hardware.zero_stage=3 {REPLAY} {AUXILIARY}"),
    "3 recomputed": ("qwen3", "hardware.zero_stage=3 model.use_lora=true model.gradient_checkpointing=true"),
    "3 offloaded": ("qwen3", "hardware.zero_stage=3 model.use_lora=true hardware.offload=true"),
}  # fmt: skip


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
            "algorithm.learning_rate=1e-3",
            "algorithm.clip_range_left=0.02",
            "algorithm.clip_range_right=0.02",
            *overrides.split(),
        )
        (folder / "config.yaml").write_text(yaml)
        configs[case] = (config, folder)
    command = [sys.executable, "-m", "tests.rank_steps", *(str(folder) for _, folder in configs.values())]
    ended = launch(command, 2, root / "logs")
    assert ended == LaunchResult(0), (root / "logs" / "rank-1.log").read_text()
    return configs


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
    # 12 conversations in 4 minibatches; the second time a single one has work, and a rank is idle; the third
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
    assert moments["param_groups"] == others["param_groups"]
    for index, state in moments["state"].items():
        assert others["state"][index]["step"] == state["step"] == 8
        for moment in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(others["state"][index][moment], state[moment], rtol=0, atol=1e-6)


def ranks(stage: int, processes: int = 2) -> list[str]:
    return [f"hardware=zero{stage}", "hardware.device=cpu", "hardware.precision=fp32",
            "hardware.tokens_per_microbatch=1024", f"hardware.processes={processes}"]  # fmt: skip


def gspo_train(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "gspo_cli.commands.train", *arguments]


def train(folder: Path, *overrides: str) -> subprocess.CompletedProcess:
    place = (
        [] if any(text.startswith("resume=") for text in overrides) else [*SMALL, f"hydra.run.dir={folder}"]
    )
    command = gspo_train("task=arithmetic", *place, *overrides) if place else gspo_train(*overrides)
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=240)


def read(folder: Path, log: str) -> list[dict]:
    """A log without what measures time, memory or room."""
    kept = ("time/", "memory/", "tokens_per_")
    lines = RunFolder(folder).read(log)
    return [{k: v for k, v in line.items() if not k.startswith(kept)} for line in lines]


def test_a_run_goes_on_under_another_stage_and_number_of_ranks(tmp_path):
    whole = train(tmp_path / "whole", "training.num_outer_iterations=4")
    assert whole.returncode == 0, whole.stderr
    first = train(tmp_path / "zero3", *ranks(3), "training.num_outer_iterations=2")
    assert first.returncode == 0, first.stderr
    shutil.copytree(tmp_path / "zero3", tmp_path / "alone", symlinks=True)
    longer = "training.num_outer_iterations=4"
    two = train(tmp_path, f"resume={tmp_path / 'zero3'}", "hardware.zero_stage=2", longer)
    one = train(
        tmp_path, f"resume={tmp_path / 'alone'}", "hardware.zero_stage=0", "hardware.processes=1", longer
    )
    assert (two.returncode, one.returncode) == (0, 0), two.stderr + one.stderr
    for folder in ("zero3", "alone"):
        for log in ("metrics.jsonl", "evals.jsonl", "samples.jsonl", "heldout.jsonl"):
            assert (
                read(tmp_path / folder, log) == [near(line) for line in read(tmp_path / "whole", log)] != []
            )


def started(folder: Path, *overrides: str) -> subprocess.Popen:
    """A long run on two ranks that has made its first iteration."""
    command = gspo_train("task=arithmetic", *SMALL, *ranks(2), f"hydra.run.dir={folder}",
                         "training.num_outer_iterations=5000", "evaluation.every=0", *overrides)  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    deadline = time.monotonic() + 120
    while not RunFolder(folder).read("metrics.jsonl"):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return process


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
    process = started(tmp_path / "run")
    os.kill(workers_of(tmp_path / "run")[1], signal.SIGKILL)
    killed = time.monotonic()
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - killed < 15
    assert process.returncode == 1
    assert "rank 1 of 2 was killed by SIGKILL" in said.splitlines()[-1]
    assert f"resume={tmp_path / 'run'}" in said.splitlines()[-1]
    assert "Traceback" not in said
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "failed"
    assert workers_of(tmp_path / "run") == {}


def test_ctrl_c_ends_all_ranks_after_the_iteration_with_a_checkpoint(tmp_path):
    process = started(tmp_path / "run")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert (tmp_path / "run" / "checkpoints" / f"iteration-{summary['iterations']:06d}").is_dir()
    assert workers_of(tmp_path / "run") == {}


def test_a_killed_launcher_leaves_no_worker_behind(tmp_path):
    process = started(tmp_path / "run")
    assert sorted(workers_of(tmp_path / "run")) == [0, 1]
    process.kill()
    process.communicate(timeout=60)
    deadline = time.monotonic() + 20
    while workers_of(tmp_path / "run"):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_worker_that_starts_after_its_launcher_is_gone_ends(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    script = (
        "import time; from gspo_cli.training.process_group import _end_with_parent; "
        "_end_with_parent(); time.sleep(60)"
    )
    worker = subprocess.run(
        [sys.executable, "-c", script],
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
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1",
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


def test_without_deepspeed_there_is_a_sentence():
    script = (
        "import sys; sys.modules['deepspeed'] = None\n"
        "from gspo_cli.config.choices import Device\n"
        "from gspo_cli.errors import UserError\n"
        "from gspo_cli.training.zero import imported\n"
        "try:\n    imported(Device.cpu)\nexcept UserError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.stdout.startswith("hardware.zero_stage: deepspeed is not installed; pip install"), done.stderr
