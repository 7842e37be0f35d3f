"""Fixtures of all tests: small models built on the spot, configurations, a place for what is cached."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import real_model
from tests.support.reporters import Silent

# torch and what imports it wait until a fixture needs it: pytest reads this file before it starts its workers

# the files that share `warm_python` come to one of two workers
LONGEST = (
    *("test_zero.py", "test_real_model.py", "test_sweeps.py", "test_damage.py", "test_experiments.py"),
    *("test_compare_command.py", "test_training.py", "test_resume.py", "test_signals.py", "test_trust.py"),
)


def pytest_collection_modifyitems(items):
    """The longest files first, so that no worker is left with one of them at the end."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture(scope="session", autouse=True)
def surroundings(tmp_path_factory):
    """One thread for torch, since models this small are slower on more. Cold starts are cached in one folder
    per test session, never in the user's."""
    import torch

    from gspo_cli.config.compose import register

    torch.set_num_threads(1)
    register()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.getbasetemp() / "state"))
        patch.setenv("CUDA_VISIBLE_DEVICES", "")  # hardware=auto would choose a GPU where there is one
        yield


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Local model folders: qwen3, qwen3_moe (with templates) and gpt2 (no template, dropout 0.1)."""
    from gspo_cli.config.model_schema import Shape
    from gspo_cli.config.trust import trust_base
    from gspo_cli.policy.embedded import write_embedded
    from tests.support.models import SMALL, TEXTS, write_gpt2

    root = tmp_path_factory.mktemp("models")
    write_embedded(root / "qwen3", Shape(**SMALL), 0, TEXTS)
    write_embedded(root / "qwen3_moe", Shape(**SMALL, experts=4, experts_per_token=2), 0, TEXTS)
    write_gpt2(root / "gpt2")
    for path in root.iterdir():
        trust_base(str(path))  # adapters of the tests are over models of ours
    return {path.name: path for path in root.iterdir()}


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of SmolLM2-135M-Instruct, a real pretrained chat model."""
    from gspo_cli.config.trust import trust_base

    folder = real_model.fetched()
    trust_base(str(folder))
    return folder


@pytest.fixture(scope="session")
def warm_python(tmp_path_factory):
    """A script that runs modules as Python does, without the seconds that importing torch takes."""
    from tests.support.command_line import ROOT, environment
    from tests.support.warm_python import write_client

    folder = tmp_path_factory.mktemp("warm")
    command = [sys.executable, "-m", "tests.support.warm_python", str(folder / "socket")]
    with subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout.readline() == "ready\n"
        write_client(folder / "python", str(folder / "socket"))
        yield str(folder / "python")
        server.kill()


@pytest.fixture
def load(folders):
    """`load("gpt2", use_lora=True)`: a policy of one of the folders."""
    from gspo_cli.config.model_schema import ModelConfig
    from gspo_cli.config.schema import HardwareConfig
    from gspo_cli.policy.loading import load_policy

    def loaded(name: str, hardware: HardwareConfig | None = None, **settings):
        defaults = {"label": name, "name": name, "use_lora": False, "gradient_checkpointing": False}
        model = ModelConfig(**(defaults | settings))
        return load_policy(str(folders[name]), model, hardware or HardwareConfig())

    return loaded


@pytest.fixture(scope="session")
def configure():
    """`configure("algorithm=grpo", ...)`: the checked configuration of a small, fast run, and its YAML."""
    from gspo_cli.config.compose import build_config, resolved_yaml
    from tests.support.configs import composed_from_parts
    from tests.support.models import SMALL
    from tests.support.whole_runs import ARITHMETIC

    def configured(*overrides: str):
        task = () if any(text.startswith("task=") for text in overrides) else ARITHMETIC
        small = [
            *task,
            "model.cold_start.steps=3",
            "model.cold_start.stop_score=null",
            "model.cold_start.batch_tokens=100",
            *(f"model.shape.{key}={value}" for key, value in SMALL.items()),
            "training.num_outer_iterations=2",
            "training.num_generations=4",
            "training.generations_per_iteration=16",
            "rollout.max_completion_length=8",
            "evaluation.problems=4",
            "evaluation.samples=2",
        ]
        node = composed_from_parts(*small, *overrides)
        return build_config(node), resolved_yaml(node)

    return configured


@pytest.fixture
def reporter():
    """Remembers what a run says."""
    return Silent()
