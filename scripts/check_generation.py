"""Do gspo-eval's greedy answers equal those of transformers' own `generate`, on the same problems?

    python scripts/check_generation.py model=smollm2 task=gsm8k task.path=train.jsonl evaluation.problems=50

Both sides run in fp32. They may choose differently where two tokens are equally likely to within rounding;
then the script prints the first such answer.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

from gspo_cli.commands.entry import run_command
from gspo_cli.config.compose import build_config, composed
from gspo_cli.config.schema import RunConfig
from gspo_cli.console.reporting import ShownSample

BATCH = 8  # prompts in one call of `generate`


def main() -> int:
    from gspo_cli.training.session import evaluate_only

    config = build_config(composed(["evaluation.samples=0", *sys.argv[1:]]))
    begin = time.perf_counter()
    record, ours = evaluate_only(config, config.model.name, None, lambda done, total, note: None, print)
    between = time.perf_counter()
    theirs = transformers_answers(config, ours)
    end = time.perf_counter()
    different = [(a, b) for a, b in zip([answer(s) for s in ours], theirs, strict=True) if a != b]
    print(f"{len(ours)} problems, score {record['score']}, mean length {record['mean_length']:.1f} tokens")
    print(f"gspo-eval {between - begin:.0f} s, transformers {end - between:.0f} s")
    print(f"equal answers: {len(ours) - len(different)} of {len(ours)}")
    for ours_said, theirs_said in different[:1]:
        print(f"\ngspo-eval:\n{ours_said}\n\ntransformers:\n{theirs_said}")
    return 1 if different else 0


def answer(sample: ShownSample) -> str:
    return sample.messages[-1]["content"]


def transformers_answers(config: RunConfig, samples: Sequence[ShownSample]) -> list[str]:
    """What `generate` answers to the prompts of `samples`, by the model's chat template and stop token."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(config.model.name, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(config.model.name, dtype=torch.float32)
    answers: list[str] = []
    for start in range(0, len(samples), BATCH):
        prompts: list[Any] = [list(sample.messages[:-1]) for sample in samples[start : start + BATCH]]
        settings = {"padding": True, "return_dict": True, "return_tensors": "pt"}
        batch = tokenizer.apply_chat_template(prompts, add_generation_prompt=True, **settings)
        longest = config.rollout.max_completion_length
        ids = model.generate(**batch, max_new_tokens=longest, do_sample=False)[:, batch.input_ids.shape[1] :]
        answers += [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
    return answers


if __name__ == "__main__":
    run_command("check_generation", main)
