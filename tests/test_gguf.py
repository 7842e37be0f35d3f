"""GGUF files as models: dequantized, trained under LoRA or whole, exported as plain folders."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from gspo_cli.config.model_schema import ModelConfig
from gspo_cli.config.schema import HardwareConfig
from gspo_cli.errors import UserError
from gspo_cli.policy.loading import load_policy
from gspo_cli.sources import ModelSource, find_source
from gspo_cli.training.session import check_source
from tests.support.batches import ragged
from tests.support.command_line import call, gspo_train
from tests.support.gguf_files import write_llama
from tests.support.whole_runs import SMALL

OF_SHAPE = ("model.shape", "model.cold_start")


@pytest.fixture(scope="module")
def files(folders, tmp_path_factory):
    """A model's folder and its GGUF file."""
    folder = tmp_path_factory.mktemp("gguf") / "llama"
    return folder, write_llama(folder, folders["qwen3"])


def loaded(name, **settings):
    defaults = {"label": "x", "name": str(name), "gradient_checkpointing": False, "use_lora": False}
    return load_policy(str(name), ModelConfig(**(defaults | settings)), HardwareConfig())


def test_a_gguf_file_scores_as_the_model_that_it_was_written_from(files, capfd):
    folder, path = files
    (path.parent / "adapter_config.json").write_text('{"base_model_name_or_path": "/another"}')
    exact, rounded = loaded(folder), loaded(path)
    ids, mask = ragged(exact)
    with torch.no_grad():
        ours, theirs = (policy(ids, mask, 1.0)[0][mask] for policy in (rounded, exact))
    assert 1e-3 < (ours - theirs).abs().mean() < 0.2  # 8 bits
    assert (ours - theirs).abs().max() < 0.1 * theirs.abs().max()
    assert rounded.chat.stop_ids == exact.chat.stop_ids
    text = "say hello to the user: 12+30="
    assert rounded.tokenizer.encode(text) == exact.tokenizer.encode(text)
    assert len(rounded.tokenizer) == len(exact.tokenizer)  # the library alone would add one
    assert capfd.readouterr() == ("", "")


@pytest.mark.long
def test_a_run_on_a_gguf_file_can_be_resumed_evaluated_and_exported(files, tmp_path):
    _, path = files
    kept = [text for text in SMALL if not text.startswith(OF_SHAPE)]
    base = ["model=small", "model.name=model.gguf", "model.lora_r=2", "evaluation.samples=1"]
    folder = tmp_path / "run"
    arguments = [*kept, *base, "training.num_outer_iterations=1", f"hydra.run.dir={folder}"]
    done = gspo_train(*arguments, "rollout.max_prompt_length=64", cwd=path.parent)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert find_source(str(folder)) == ModelSource(str(path), (folder / "checkpoints" / "best").resolve())
    assert gspo_train(f"resume={folder}", "training.num_outer_iterations=2", cwd=tmp_path).returncode == 0
    assert call("gspo-eval", str(folder), "--json", cwd=tmp_path).returncode == 0
    done = call("gspo-export", str(folder), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    config = json.loads((folder / "export" / "config.json").read_text())
    assert (config["dtype"], config.get("quantization_config")) == ("bfloat16", None)


def test_a_gguf_file_is_exported_as_a_plain_folder(files, tmp_path):
    _, path = files
    done = call("gspo-export", str(path), str(tmp_path / "plain"), "--dtype", "float32")
    assert done.returncode == 0, done.stderr
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    ids = torch.arange(1, 12)[None]
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, loaded(path).causal_model(ids).logits, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["hardware.zero_stage=3", "hardware.processes=1"], "cannot be read as weights that ZeRO-3 shards"),
        (["rollout=vllm"], "weights cannot be pushed to a GGUF file"),
    ],
)
def test_what_a_gguf_file_cannot_do_is_refused(files, configure, settings, reason):
    _, path = files
    config, _ = configure(f"model.name={path}", "model.use_lora=true", "model.cold_start.steps=0", *settings)
    with pytest.raises(UserError, match=rf"{reason}; write a plain folder first with gspo-export "):
        check_source(config, find_source(str(path)))


def test_weights_of_a_gguf_file_are_not_quantized_again(files):
    with pytest.raises(UserError, match="cannot be quantized again"):
        loaded(files[1], use_lora=True, use_8bit=True)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no", b"GGUF\x03\x00\x00\x00 cut"])
def test_a_file_that_is_no_gguf_is_one_sentence(tmp_path, content):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"^model\.name=.*model\.gguf: [^\n]*; [^\n]*$"):
        loaded(path)
