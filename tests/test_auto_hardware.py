"""hardware=auto takes the values of the option that the visible GPUs and the other settings allow, and says
why; a run goes on, and is evaluated, on a machine that has other hardware."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from gspo_cli.compare.missing_runs import SharedSettings
from gspo_cli.config.auto_hardware import use_hardware_here, use_one_process
from gspo_cli.config.choices import Device
from gspo_cli.config.compose import build_config, composed, load_saved, resolved_yaml, with_overrides
from gspo_cli.config.schema import HardwareConfig, RunConfig
from gspo_cli.errors import UserError
from gspo_cli.launching.start import idle_gpu_note, process_count, require_device, resumed, settings_for
from gspo_cli.run.folder import RunFolder
from tests.support.command_line import call, gspo_train
from tests.support.whole_runs import SMALL

ROOT = Path(__file__).resolve().parent.parent
needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed")


@pytest.fixture
def gpus(monkeypatch):
    """`gpus(4)`: so many are visible."""

    def visible(count: int) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count))))

    return visible


def option(name: str) -> HardwareConfig:
    return build_config(composed([f"hardware={name}"])).hardware


def chosen(*overrides: str) -> tuple[RunConfig, str]:
    config = build_config(composed(overrides))
    return config, config.hardware.chosen.removeprefix("auto chose ")


@pytest.mark.parametrize(
    ("count", "overrides", "expected", "why"),
    [
        (0, [], "cpu", "cpu: no GPU is visible"),
        (0, ["model=moe"], "cpu", "cpu: no GPU is visible"),
        (1, [], "single_gpu", "single_gpu: one GPU is visible"),
        (1, ["rollout=vllm"], "single_gpu", "single_gpu: one GPU is visible"),
        pytest.param(4, ["model=moe"], "zero2", "zero2: 4 GPUs are visible", marks=needs_deepspeed),
        pytest.param(
            2, ["model=large", "model.use_4bit=true"], "zero2", "zero2: 2 GPUs are visible",
            marks=needs_deepspeed,
        ),
        (2, ["rollout=vllm"], "single_gpu", "single_gpu: 2 GPUs are visible, but rollout.engine=vllm"),
        (
            2, ["training.optimizer=adamw_8bit"], "single_gpu",
            "single_gpu: 2 GPUs are visible, but ZeRO does not support training.optimizer=adamw_8bit",
        ),
        pytest.param(
            2, ["training.generations_per_iteration=8"], "single_gpu",
            "single_gpu: 2 GPUs are visible, but an iteration has one prompt", marks=needs_deepspeed,
        ),
        (4, ["hardware.device=cpu"], "cpu", "cpu: hardware.device=cpu"),
        (4, ["hardware.zero_stage=0"], "single_gpu", "single_gpu: 4 GPUs are visible, but hardware.zero_st"),
        (4, ["hardware.processes=1"], "single_gpu", "single_gpu: 4 GPUs are visible, but hardware.processes"),
    ],
)  # fmt: skip
def test_auto_takes_an_options_values_and_says_why(gpus, count, overrides, expected, why):
    gpus(count)
    config, reason = chosen(*overrides)
    wanted = option(expected)
    given = {text.partition("=")[0] for text in overrides}
    for key in ("device", "precision", "tokens_per_microbatch", "zero_stage", "processes"):
        if f"hardware.{key}" not in given:
            assert getattr(config.hardware, key) == getattr(wanted, key), key
    assert reason.startswith(why)


@needs_deepspeed
def test_fewer_prompts_than_gpus_take_fewer_processes(gpus):
    gpus(8)
    config, why = chosen("training.generations_per_iteration=24", "training.num_generations=8")
    assert (config.hardware.zero_stage, config.hardware.processes) == (2, 3)
    assert why.startswith("zero2: 8 GPUs are visible, but an iteration has 3 prompts")
    given = ["training.generations_per_iteration=24", "training.num_generations=8", "hardware=zero2"]
    assert process_count(build_config(composed(given)), lambda: 8) == 3


def test_without_deepspeed_one_gpu_is_used(gpus, monkeypatch):
    gpus(2)
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "deepspeed" else found(name)
    )
    config, why = chosen()
    assert replace(config.hardware, chosen="") == option("single_gpu")
    assert "but DeepSpeed is not installed (pip install 'deepspeed>=" in why


@needs_deepspeed
def test_settings_that_are_given_win_over_those_that_auto_takes(gpus):
    gpus(2)
    config, _ = chosen(
        "hardware.precision=fp32", "hardware.tokens_per_microbatch=99", "hardware.zero_stage=3"
    )
    hardware = config.hardware
    assert (hardware.precision.value, hardware.tokens_per_microbatch, hardware.zero_stage) == ("fp32", 99, 3)
    assert hardware.device is Device.cuda


def test_an_option_that_is_given_is_not_auto(gpus):
    gpus(2)
    assert chosen("hardware=cpu") == (build_config(composed(["hardware=cpu"])), "")


def test_what_auto_chose_is_saved_and_on_the_card(tmp_path):
    done = gspo_train(*SMALL, f"hydra.run.dir={tmp_path / 'run'}", "training.num_outer_iterations=1")
    assert done.returncode == 0, done.stderr
    saved = OmegaConf.load(tmp_path / "run" / "config.yaml")
    assert (saved.hardware.device, saved.hardware.precision) == ("cpu", "fp32")
    card = json.loads((tmp_path / "run" / "card.json").read_text())
    assert saved.hardware.chosen == "auto chose cpu: no GPU is visible"
    assert "hardware: auto chose cpu: no GPU is visible" in card["notes"]
    assert "note        hardware: auto chose cpu: no GPU is visible" in done.stdout


PROBE = """
import sys
from gspo_cli.commands.train import main
try:
    main()
finally:
    print("torch" in sys.modules, file=sys.stderr)
"""


def test_gpus_are_counted_without_torch():
    command = [sys.executable, "-c", PROBE, "--cfg", "job", "--resolve", "rollout=vllm"]
    variables = {"CUDA_VISIBLE_DEVICES": "0,1,2", "PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == "False\n"
    assert "  device: cuda\n  precision: bf16\n" in done.stdout
    assert "auto chose single_gpu: 3 GPUs are visible" in " ".join(done.stdout.split())


def test_runs_that_share_a_machine_take_one_gpu_each(gpus):
    gpus(4)
    node = composed([])
    use_one_process(node)
    assert build_config(node).hardware.zero_stage == 0
    run = SharedSettings(["task=arithmetic"]).run("gspo", 0, None)
    assert (run.config.hardware.zero_stage, run.config.hardware.device) == (0, Device.cuda)
    more = SharedSettings(["task=arithmetic", "hardware=zero2", "hardware.processes=2"]).run("gspo", 0, None)
    assert (more.config.hardware.zero_stage, more.config.hardware.processes) == (2, 2)
    gpus(1)
    assert composed([]).hardware.processes is None


# ---- another machine


@pytest.mark.parametrize("name", ["auto", "single_gpu", "zero2", "zero3_offload"])
def test_a_run_of_a_gpu_resumes_without_one_by_the_settings_that_are_named(gpus, tmp_path, name):
    gpus(2)
    RunFolder(tmp_path / "run").create(resolved_yaml(composed([f"hardware={name}"])))
    gpus(0)
    config = build_config(resumed(tmp_path / "run", [])[0])
    with pytest.raises(UserError, match=r"^hardware.device=cuda: no GPU is visible; use ") as error:
        process_count(config, lambda: 0, resumes=True)
    named = str(error.value).partition("; use ")[2].partition(", or ")[0].split()
    assert {"hardware.device=cpu", "hardware.precision=fp32"} <= set(named)
    config = build_config(resumed(tmp_path / "run", named)[0])
    assert config.hardware == option("cpu")
    assert process_count(config, lambda: 0, resumes=True) == 1
    with pytest.raises(UserError, match=r"^hardware=cpu: is given as single settings when a run is resumed"):
        resumed(tmp_path / "run", ["hardware=cpu"])


def test_a_run_of_a_cpu_resumes_on_it_and_names_the_settings_of_the_gpu(gpus, tmp_path):
    RunFolder(tmp_path / "run").create(resolved_yaml(composed(["hardware=cpu"])))
    config = build_config(resumed(tmp_path / "run", [])[0])
    gpus(0)
    assert idle_gpu_note(config) == ""
    gpus(1)
    note = idle_gpu_note(config)
    named = note.partition(", add ")[2].split()
    assert build_config(resumed(tmp_path / "run", named)[0]).hardware == option("single_gpu")
    assert idle_gpu_note(build_config(resumed(tmp_path / "run", named)[0])) == ""


def test_settings_for_an_option_are_those_that_differ():
    assert settings_for("cpu", option("cpu")) == ""
    assert settings_for("single_gpu", option("zero1")) == "hardware.zero_stage=0"


def test_a_torch_that_sees_no_gpu_is_named(gpus):
    gpus(2)
    with pytest.raises(UserError, match=r"^hardware.device=cuda: torch \S+ finds none of the GPUs that are"):
        require_device(option("single_gpu"), lambda: 0)


def test_a_run_of_a_missing_gpu_is_refused_before_its_folder_is_made(tmp_path):
    done = gspo_train(*SMALL, "hardware=single_gpu", cwd=tmp_path, CUDA_VISIBLE_DEVICES="")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert done.stderr.startswith("gspo-train: hardware.device=cuda: no GPU is visible; use hardware=cpu")
    assert list(tmp_path.rglob("*.yaml")) == []


@pytest.mark.parametrize("name", ["single_gpu", "zero3_offload"])
def test_a_run_of_a_gpu_is_evaluated_without_one(gpus, tmp_path, name):
    given = [f"hardware={name}", *(["training.optimizer=paged_adamw_8bit"] if name == "single_gpu" else [])]
    RunFolder(tmp_path).create(resolved_yaml(composed(given)))
    gpus(0)
    saved = load_saved(tmp_path / "config.yaml")
    assert use_hardware_here(saved).startswith("the run was trained on a GPU and none is visible here")
    assert build_config(saved).hardware == option("cpu")
    assert build_config(with_overrides(saved, ["hardware.precision=bf16"])).hardware.precision.value == "bf16"
    gpus(1)
    assert use_hardware_here(load_saved(tmp_path / "config.yaml")) == ""


@pytest.mark.parametrize(("kind", "here"), [("flex_attention", "auto"), ("eager", "eager")])
def test_attention_that_needs_a_gpu_is_not_needed_to_evaluate(kind, here, gpus, tmp_path):
    RunFolder(tmp_path).create(resolved_yaml(composed(["hardware=single_gpu", f"model.attention={kind}"])))
    gpus(0)
    saved = load_saved(tmp_path / "config.yaml")
    use_hardware_here(saved)
    assert build_config(saved).model.attention.value == here


def test_gspo_eval_evaluates_a_run_of_a_gpu_on_the_cpu(tmp_path):
    folder = tmp_path / "run"
    quick = ["training.num_outer_iterations=1", "evaluation.samples=0"]
    assert gspo_train(*SMALL, *quick, f"hydra.run.dir={folder}").returncode == 0
    text = (folder / "config.yaml").read_text()
    RunFolder(folder).write_config(text.replace("device: cpu", "device: cuda"))
    done = call("gspo-eval", str(folder), "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("note: the run was trained on a GPU and none is visible here")
    assert json.loads(done.stdout)["num_problems"] == 4
