"""Models built on the spot: no hub, no network."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

TEXTS = [f"{a}+{b}=" for a in range(0, 100, 7) for b in range(0, 100, 9)] + ["say hello to the user again"]
SMALL = {
    "hidden_size": 32,
    "layers": 2,
    "heads": 4,
    "key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
}


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


@contextmanager
def untouched(policy) -> Iterator[None]:
    """A block that leaves weights to the bit, no gradient, torch's draws and the mode as they were."""
    before = copy.deepcopy(policy.state_dict())
    torch.manual_seed(3)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    yield
    assert torch.equal(torch.rand(1), drawn)
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())
    assert all(parameter.grad is None for parameter in policy.parameters())
    assert not policy.model.training
