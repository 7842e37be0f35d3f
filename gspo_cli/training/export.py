"""A trained policy as a plain model folder that other programs load, or its LoRA adapter alone.

The folder is measured against the policy on held-out prompts before it is kept, with the policy's own greedy
answers. Shapes: T tokens that are compared, V vocabulary."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gspo_cli.adapters import CONFIG, FILES
from gspo_cli.config.model_schema import ModelConfig
from gspo_cli.config.schema import HardwareConfig, RunConfig
from gspo_cli.errors import UserError
from gspo_cli.policy.loading import load_policy
from gspo_cli.policy.logprobs import linear_logits
from gspo_cli.policy.policy import Policy
from gspo_cli.policy.pretrained import stored_dtype
from gspo_cli.policy.weights import merged
from gspo_cli.rollout.engine import Request, Sampling, generate
from gspo_cli.rollout.prompts import Prompts
from gspo_cli.rollout.transformers_engine import TransformersEngine
from gspo_cli.run.files import folder_written_whole
from gspo_cli.sources import EMBEDDED, ModelSource, find_source
from gspo_cli.types import Message

PROMPTS, ANSWER_TOKENS, BEFORE = 20, 32, 32  # checked prompts, tokens of an answer, and of its prompt
MERGE_PROMPTS = 4  # of them, where the merge is checked: it errs alike in all texts
MERGE_LIMIT = 1e-4  # of the range of the policy's logits
KL_LIMIT = 0.01  # nats per token; above it the precision is reported as a loss
TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "chat_template*",
)
# where an adapter comes without a run, and so without held-out problems
QUESTIONS = (
    "What is the capital of France?",
    "Name three primary colors.",
    "Write one sentence about the sea.",
    "What is 12 plus 30?",
    "Who wrote Hamlet?",
    "Give a synonym of quick.",
    "How many days are in a week?",
    "Translate good morning into Spanish.",
    "What do bees make?",
    "Is the sun a star?",
    "List two even numbers.",
    "What is the opposite of cold?",
    "Explain rain in one sentence.",
    "Which animal says meow?",
    "What is 7 times 8?",
    "Name a planet larger than Earth.",
    "Write a polite refusal.",
    "What color is grass?",
    "How do I boil an egg?",
    "Say goodbye to a customer.",
)


@dataclass(frozen=True)
class Fidelity:
    """How close an export is to its policy over `tokens` greedy tokens of `answers` answers.

    `merge_error` is the largest difference of the fp32 merge's logits, as a share of the range of the
    policy's; `kl` the mean divergence of the saved weights from the policy, in nats per token; `dtype` the
    precision they are saved in."""

    merge_error: float
    kl: float
    same_tokens: int
    tokens: int
    same_answers: int
    answers: int
    dtype: str


@dataclass(frozen=True)
class Answered:
    """A prompt with the policy's greedy answer, which begins at `start`, and the policy's logits (T, V) of
    the compared tokens."""

    ids: list[int]
    start: int
    logits: Tensor

    @property
    def first(self) -> int:
        """The first token that is compared."""
        return max(1, self.start - BEFORE)


def export_model(
    source: ModelSource,
    folder: Path,
    config: RunConfig | None,
    dtype: str | None,
    trust_remote_code: bool,
    card: Callable[[Fidelity, str], str],
    warn: Callable[[str], None],
) -> Fidelity:
    """Write `source` as a plain model to `folder`: merged in fp32, saved in `dtype` (None: the precision of
    the pretrained model), with `card(fidelity, prompt)` as README.md.

    `config` is that of the run that trained it. Raises UserError if the merge differs from the policy by more
    than MERGE_LIMIT; nothing is written then."""
    policy = load_policy(
        source.base, _model(source, config, trust_remote_code), HardwareConfig(), source.adapter
    )
    answered = greedy_answers(policy, prompt_ids(policy, config, warn))
    if policy.has_adapter:
        policy.model = merged(policy.model)
    merge_error = max(_distance(policy, each) for each in answered[:MERGE_PROMPTS])
    if not merge_error <= MERGE_LIMIT:
        raise UserError(
            f"{source.place}: merging the adapter moves its logits by {merge_error:.1g} of their range, "
            f"where {MERGE_LIMIT:g} is allowed; export the adapter alone with --adapter"
        )
    saved_as = getattr(torch, dtype) if dtype else _pretrained_dtype(source, config, trust_remote_code)
    shown = str(policy.tokenizer.decode(answered[0].ids[: answered[0].start]))
    with folder_written_whole(folder) as unfinished:
        policy.to(saved_as).save(unfinished)
        del policy  # before a second copy is loaded
        plain = _model(ModelSource(str(unfinished)), config, trust_remote_code)
        reloaded = load_policy(str(unfinished), plain, HardwareConfig())
        fidelity = measured(reloaded, answered, merge_error, str(saved_as).removeprefix("torch."))
        (unfinished / "README.md").write_text(card(fidelity, shown), encoding="utf-8")
    return fidelity


def export_adapter(source: ModelSource, folder: Path, card: str) -> None:
    """Copy the adapter of `source` with its tokenizer to `folder`, with the base it really belongs to and
    `card` as README.md."""
    assert source.adapter is not None
    values = json.loads((source.adapter / CONFIG).read_text(encoding="utf-8"))
    values |= {"base_model_name_or_path": source.base, "inference_mode": True}
    if isinstance(values.get("target_modules"), list):
        values["target_modules"] = sorted(values["target_modules"])
    names = [path for pattern in (*FILES, *TOKENIZER_FILES) for path in sorted(source.adapter.glob(pattern))]
    with folder_written_whole(folder) as unfinished:
        for path in names:
            shutil.copy(path, unfinished / path.name)
        (unfinished / CONFIG).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        (unfinished / "README.md").write_text(card, encoding="utf-8")


def prompt_ids(policy: Policy, config: RunConfig | None, warn: Callable[[str], None]) -> list[list[int]]:
    """Prompts to compare on: the first held-out ones of the run that fit, or general questions where the
    task's files are not here."""
    prompts = Prompts(policy.chat)
    openings = [(Message("user", question),) for question in QUESTIONS]
    if config is not None:
        try:
            openings = [problem.messages for problem in config.task.heldout_problems()]
            prompts = Prompts(policy.chat, config.task.system_prompt_and_tools())
        except UserError as error:
            warn(f"{error}: the export is compared on general questions in place of held-out prompts")
    room = policy.max_positions - ANSWER_TOKENS
    found: list[list[int]] = []
    for opening in openings:
        if len(found) == PROMPTS:
            break
        ids = list(prompts.ids(opening))
        if len(ids) <= room:
            found.append(ids)
    if not found:
        raise UserError("gspo-export: no held-out prompt fits the model's context; nothing can be compared")
    return found


@torch.no_grad()
def greedy_answers(policy: Policy, prompts: Sequence[list[int]]) -> list[Answered]:
    """The policy's greedy answers to `prompts`, with its logits."""
    sampling = Sampling(0.0, 1.0, 0, ANSWER_TOKENS, policy.chat.stop_ids)
    requests = [Request(ids, 0, place) for place, ids in enumerate(prompts)]
    engine = TransformersEngine(policy, PROMPTS)
    found = []
    for ids, completion in zip(prompts, generate(engine, requests, sampling), strict=True):
        whole, start = [*ids, *completion.token_ids], len(ids)
        logits = logits_from(policy, whole, max(1, start - BEFORE))
        found.append(Answered(whole, start, logits))
    return found


@torch.no_grad()
def logits_from(policy: Policy, ids: Sequence[int], first: int) -> Tensor:
    """fp32 logits of the tokens from `first` on. -> (T, V)"""
    causal = policy.causal_model
    head = policy.head(causal)
    hidden = causal.base_model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state
    return linear_logits(hidden[0, first - 1 : -1], head.weight, head.bias, 1.0)


def measured(plain: Policy, answered: Sequence[Answered], merge_error: float, dtype: str) -> Fidelity:
    """How close the model `plain` is to the policy that gave `answered`."""
    kl, tokens, same_tokens, same_answers = 0.0, 0, 0, 0
    for each in answered:
        ours = each.logits[each.start - each.first :]
        theirs = logits_from(plain, each.ids, each.start)
        p, q = ours.log_softmax(dim=-1), theirs.log_softmax(dim=-1)
        kl += (p.exp() * (p - q)).sum().item()
        same = theirs.argmax(dim=-1) == torch.tensor(each.ids[each.start :])
        tokens += len(same)
        same_tokens += int(same.sum())
        same_answers += bool(same.all())
    return Fidelity(merge_error, kl / tokens, same_tokens, tokens, same_answers, len(answered), dtype)


def _distance(plain: Policy, each: Answered) -> float:
    difference = (logits_from(plain, each.ids, each.first) - each.logits).abs().max()
    value = (difference / (each.logits.max() - each.logits.min())).item()
    return value if math.isfinite(value) else math.inf


def _model(source: ModelSource, config: RunConfig | None, trust_remote_code: bool) -> ModelConfig:
    """How to load the policy: in full precision, and without what only training needs."""
    return ModelConfig(
        label="export",
        name=source.base,
        use_lora=source.adapter is not None,
        gradient_checkpointing=False,
        experts_implementation=None if config is None else config.model.experts_implementation,
        trust_remote_code=trust_remote_code,
    )


def _pretrained_dtype(source: ModelSource, config: RunConfig | None, trust_remote_code: bool) -> torch.dtype:
    """The precision of the model that the run was given: it trains fp32 weights, also of a bf16 model."""
    if config is not None and config.model.name != EMBEDDED:
        try:
            base = find_source(config.model.name, config.model.base).base
            return stored_dtype(base, trust_remote_code)
        except UserError:  # it is gone; what the run made of it is not
            pass
    return stored_dtype(source.base, trust_remote_code)
