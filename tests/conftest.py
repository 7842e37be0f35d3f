"""Models built on the spot: no hub, no network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from gspo_cli.config.compose import CONF_DIR, build_config, register, resolved_yaml
from gspo_cli.config.model_schema import ModelConfig, Shape
from gspo_cli.config.schema import HardwareConfig
from gspo_cli.policy.embedded import write_embedded
from gspo_cli.policy.loading import load_policy

torch.set_num_threads(1)  # models this small are slower on more
register()

TEXTS = [f"{a}+{b}=" for a in range(0, 100, 7) for b in range(0, 100, 9)] + ["say hello to the user again"]
SMALL = {
    "hidden_size": 32,
    "layers": 2,
    "heads": 4,
    "key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
}


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    """Cold starts are cached in one folder per test session, never in the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Local model folders: qwen3, qwen3_moe (with templates) and gpt2 (no template, dropout 0.1)."""
    root = tmp_path_factory.mktemp("models")
    write_embedded(root / "qwen3", Shape(**SMALL), 0, TEXTS)
    write_embedded(root / "qwen3_moe", Shape(**SMALL, experts=4, experts_per_token=2), 0, TEXTS)
    write_gpt2(root / "gpt2")
    return {path.name: path for path in root.iterdir()}


def write_gpt2(folder: Path) -> None:
    """gpt2's shape and tokenizer type: byte-level, <|endoftext|> for everything, no chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<|endoftext|>": 0} | {symbol: i for i, symbol in enumerate(alphabet, start=1)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>"
    )
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(fast), n_embd=32, n_layer=2, n_head=4, n_positions=512, bos_token_id=0, eos_token_id=0
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    fast.save_pretrained(folder)


@pytest.fixture
def load(folders):
    """`load("gpt2", use_lora=True)`: a policy of one of the folders."""

    def loaded(name: str, hardware: HardwareConfig | None = None, **settings):
        defaults = {"label": name, "name": name, "use_lora": False, "gradient_checkpointing": False}
        model = ModelConfig(**(defaults | settings))
        return load_policy(str(folders[name]), model, hardware or HardwareConfig())

    return loaded


@pytest.fixture(scope="session")
def configure():
    """`configure("algorithm=grpo", ...)`: the checked configuration of a small, fast run, and its YAML."""

    def configured(*overrides: str):
        small = [
            "task=arithmetic",
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
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            node = compose("train", overrides=[*small, *overrides])
        return build_config(node), resolved_yaml(node)

    return configured


class Silent:
    """A reporter that remembers warnings and events."""

    def __init__(self):
        self.warnings, self.events = [], []

    def begin(self, title, card, iterations, start):
        self.events.append(("begin", start))

    def stage(self, name, done, total, note=""):
        self.events.append((name, done))

    def iteration(self, metrics):
        self.events.append(("iteration", metrics["iteration"]))

    def evaluation(self, record):
        self.events.append(("evaluation", record["iteration"]))

    def samples(self, samples):
        self.events.append(("samples", len(samples)))

    def warn(self, text):
        self.warnings.append(text)

    def end(self, summary):
        self.events.append(("end", summary["status"]))


@pytest.fixture
def reporter() -> Silent:
    """Remembers what a run says."""
    return Silent()
