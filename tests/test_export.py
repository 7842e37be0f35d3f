"""gspo-export: a plain folder that other programs load, equal to the policy, or the adapter alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from gspo_cli.config.model_schema import ModelConfig
from gspo_cli.config.schema import HardwareConfig
from gspo_cli.policy.loading import load_policy
from gspo_cli.sources import find_source
from gspo_cli.training.export import greedy_answers, logits_from, measured
from tests.support.batches import weights
from tests.support.command_line import call, gspo_train
from tests.support.whole_runs import SMALL

pytestmark = pytest.mark.long

IDS = torch.arange(1, 12)[None]


def loaded(name, **settings):
    defaults = {"label": "x", "name": str(name), "gradient_checkpointing": False}
    return load_policy(str(name), ModelConfig(**(defaults | settings)), HardwareConfig())


def logits(name, **settings):
    with torch.no_grad():
        return loaded(name, **settings).causal_model(IDS).logits


def plain(folder, **arguments):
    model = AutoModelForCausalLM.from_pretrained(folder, **arguments).eval()
    with torch.no_grad():
        return model(IDS).logits


def export(*arguments):
    done = call("gspo-export", *map(str, arguments))
    assert done.returncode == 0, done.stderr
    return done


def trained(folder, *overrides):
    done = gspo_train(
        *SMALL,
        "training.num_outer_iterations=2",
        "algorithm.learning_rate=0.05",
        f"hydra.run.dir={folder}",
        *overrides,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of LoRA on an embedded model."""
    return trained(tmp_path_factory.mktemp("lora") / "run", "model.use_lora=true")


@pytest.fixture(scope="module")
def exported(run) -> Path:
    """Its last checkpoint, exported."""
    export(run, "--checkpoint", "last")
    return run / "export"


def test_an_export_loads_in_plain_transformers_with_the_policys_logits(run, exported):
    expected = logits(run / "checkpoints" / "last")
    torch.testing.assert_close(plain(exported), expected, rtol=0, atol=1e-5)
    assert not torch.allclose(plain(run / "initial_model"), expected, atol=1e-2)
    assert not list(exported.glob("adapter*"))
    tokenizer = AutoTokenizer.from_pretrained(exported)
    assert tokenizer.chat_template
    assert tokenizer.encode("12+3=") == AutoTokenizer.from_pretrained(run / "initial_model").encode("12+3=")


def test_the_card_says_what_was_trained_how_and_with_which_result(run, exported):
    card = (exported / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    for line in (
        "# an embedded model of gspo-cli, trained with gspo on arithmetic",
        "| weights trained | LoRA, rank 16, alpha 32 |",
        "| checkpoint | iteration 2 |",
        "| task data | generated (license: Apache-2.0) |",
        "| held-out score, greedy |",
        "the same greedy answer to 20 prompts",
        "<|user|>",
    ):
        assert line in card
    assert str(run.parent) not in card  # no path of the machine that trained it
    assert f"torch {torch.__version__}" in card


def test_experts_are_exported_under_the_names_of_a_plain_checkpoint(tmp_path):
    shape = ["model=tiny_moe", "model.use_lora=true", "model.lora_experts=true", "model.freeze_router=true"]
    run = trained(tmp_path / "run", *shape)
    export(run, "--checkpoint", "last")
    torch.testing.assert_close(plain(run / "export"), logits(run / "checkpoints" / "last"), rtol=0, atol=1e-5)
    from safetensors.torch import load_file

    names = [
        load_file(folder / "model.safetensors").keys() for folder in (run / "export", run / "initial_model")
    ]
    assert names[0] == names[1]
    assert "model.layers.0.mlp.experts.0.gate_proj.weight" in names[0]


def test_all_weights_are_exported_in_the_precision_of_the_pretrained_model(folders, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(folders["qwen3"]).to(torch.bfloat16)
    base.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(folders["qwen3"]).save_pretrained(tmp_path / "base")
    whole = [f"model.name={tmp_path / 'base'}", "model.use_lora=false", "rollout.max_prompt_length=64"]
    run = trained(tmp_path / "run", *whole, "model.cold_start.steps=0", "algorithm.learning_rate=1e-3")
    expected = plain(run / "checkpoints" / "last")
    done = export(run, tmp_path / "a", "--checkpoint", "2")
    assert json.loads((tmp_path / "a" / "config.json").read_text())["dtype"] == "bfloat16"
    rounded = plain(tmp_path / "a", dtype=torch.float32)
    assert 0 < (rounded - expected).abs().max() < 0.02
    assert "as saved         KL " in done.stdout
    export(run, tmp_path / "b", "--checkpoint", "2", "--dtype", "float32")
    assert torch.equal(plain(tmp_path / "b"), expected)


# peft 0.21 asks transformers by a name that transformers 5.23 deprecates
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_the_adapter_alone_names_the_base_that_it_belongs_to(run, tmp_path):
    done = export(run, tmp_path / "adapter", "--adapter", "--checkpoint", "last")
    values = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert values["base_model_name_or_path"] == str(run / "initial_model")
    assert "--enable-lora --lora-modules trained=" in done.stdout
    assert not list((tmp_path / "adapter").glob("trainer*"))
    base = AutoModelForCausalLM.from_pretrained(run / "initial_model")
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()(IDS).logits
    torch.testing.assert_close(theirs, logits(run / "checkpoints" / "last"), rtol=0, atol=0)
    moved = tmp_path / "moved"  # a run folder finds its own base again
    shutil.copytree(run, moved, symlinks=True)
    export(moved, tmp_path / "second", "--adapter")
    values = json.loads((tmp_path / "second" / "adapter_config.json").read_text())
    assert values["base_model_name_or_path"] == str(moved / "initial_model")


def test_an_adapter_from_elsewhere_is_merged_into_its_base(run, tmp_path):
    shutil.copytree(run / "checkpoints" / "last", tmp_path / "adapter")
    export(tmp_path / "adapter", tmp_path / "plain")
    torch.testing.assert_close(plain(tmp_path / "plain"), logits(tmp_path / "adapter"), rtol=0, atol=1e-5)
    assert "what trained it is not recorded" in (tmp_path / "plain" / "README.md").read_text()


def test_a_second_stage_tells_of_the_first(run, tmp_path):
    second = trained(tmp_path / "run", "model.use_lora=true", f"model.name={run}", "model.cold_start.steps=0")
    export(second, tmp_path / "plain")
    card = (tmp_path / "plain" / "README.md").read_text()
    assert "# an embedded model of gspo-cli, trained" in card
    assert " of an earlier run, gspo on arithmetic |" in card


def test_a_quantized_base_leaves_the_adapter_alone_and_says_why(folders, tmp_path):
    pytest.importorskip("bitsandbytes")
    base = [f"model.name={folders['qwen3']}", "model.use_lora=true", "model.use_8bit=true"]
    run = trained(tmp_path / "run", *base, "model.cold_start.steps=0", "rollout.max_prompt_length=64")
    done = export(run, tmp_path / "out")
    assert "trained over a base in fewer bits (model.use_8bit=true)" in done.stderr
    assert find_source(str(tmp_path / "out")).base == str(folders["qwen3"])
    assert not list((tmp_path / "out").glob("model*"))


def test_what_cannot_be_exported_is_one_sentence_and_nothing_is_written(run, exported, folders, tmp_path):
    before = sorted(tmp_path.iterdir())
    for arguments, reason in (
        ([run], "already exists; give another folder"),
        (
            [run, tmp_path / "x", "--checkpoint", "99"],
            "--checkpoint 99: does not exist; choose one of initial, last, best",
        ),
        ([run / "initial_model", tmp_path / "x"], "is a plain model already"),
        ([run, tmp_path / "x", "--adapter", "--checkpoint", "initial"], "has no LoRA adapter"),
        ([exported], "say which folder to write"),
        ([tmp_path / "nowhere", tmp_path / "x"], "no such file or folder is here"),
    ):
        done = call("gspo-export", *map(str, arguments))
        assert (done.returncode, done.stdout) == (2, ""), reason
        assert reason in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before


def test_the_measures_tell_a_changed_model_from_the_policy(folders):
    policy, other = loaded(folders["qwen3"], use_lora=False), loaded(folders["qwen3"], use_lora=False)
    answered = greedy_answers(policy, [[5, 6, 7], list(range(40, 90))])
    assert measured(other, answered, 0.0, "float32").kl == 0
    with torch.no_grad():
        for parameter in other.trainable():
            parameter.mul_(1.05)
    found = measured(other, answered, 0.0, "float32")
    expected, tokens = 0.0, 0
    for each in answered:
        whole = torch.tensor([each.ids])
        with torch.no_grad():
            p, q = (
                m.causal_model(whole).logits[0, each.start - 1 : -1].log_softmax(-1) for m in (policy, other)
            )
        expected += (p.exp() * (p - q)).sum().item()
        tokens += len(each.ids) - each.start
        torch.testing.assert_close(each.logits, logits_from(policy, each.ids, each.first))
    assert found.kl == pytest.approx(expected / tokens, rel=1e-3)
    assert found.tokens == tokens
    assert not torch.equal(weights(policy), weights(other))


def test_a_run_whose_problems_are_not_here_is_compared_on_general_questions(tmp_path):
    rows = "".join(json.dumps({"prompt": f"say {n}", "answer": n}) + "\n" for n in range(8))
    (tmp_path / "mine.jsonl").write_text(rows)
    cold = ["model.cold_start.steps=0", "evaluation.samples=0"]
    sizes = [text for text in SMALL if not text.startswith(("task", "model.cold_start"))]
    task = ["task=jsonl", f"task.path={tmp_path / 'mine.jsonl'}", "task.heldout=2"]
    done = gspo_train(
        *sizes, *task, *cold, "training.num_outer_iterations=1", f"hydra.run.dir={tmp_path / 'run'}"
    )
    assert done.returncode == 0, done.stderr
    (tmp_path / "mine.jsonl").unlink()
    said = export(tmp_path / "run", tmp_path / "plain").stderr
    assert "mine.jsonl: cannot be read" in said
    assert "is compared on general questions" in said
    assert (tmp_path / "plain" / "config.json").is_file()
