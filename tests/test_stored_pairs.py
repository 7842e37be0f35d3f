"""Training on a file of preference pairs: what a row says, what is trained on, and in which order."""

from __future__ import annotations

import gzip
import json
from collections import Counter

import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid

from gspo_cli.errors import UserError
from gspo_cli.rollout.prompts import Prompts
from gspo_cli.tasks.base import SystemPrompt
from gspo_cli.tasks.pairs import Pair, PairFile, pair_of
from gspo_cli.training.credit import compared
from gspo_cli.training.metrics import Clock, update_metrics
from gspo_cli.training.stored_pairs import PairCollector, StoredPairs, encoded, read_pairs, usable_pairs
from gspo_cli.training.update import Updater
from gspo_cli.types import Message, Problem
from tests.support.batches import gradients_of
from tests.support.tasks import write

ASKED = {"role": "user", "content": "1+2="}
RIGHT, WRONG = ({"role": "assistant", "content": text} for text in "34")
EARLIER = [{"role": "system", "content": "Add."}, ASKED, {"role": "assistant", "content": "5"}, ASKED]
SAME = [
    {"prompt": "1+2=", "chosen": "3", "rejected": "4"},
    {"messages": [ASKED], "chosen": "3", "rejected": "4"},
    {"prompt": [ASKED], "chosen": [RIGHT], "rejected": [WRONG]},
    {"messages": [ASKED], "chosen": [RIGHT], "rejected": "4", "score_chosen": 9.0},
    {"prompt": None, "chosen": [ASKED, RIGHT], "rejected": [ASKED, WRONG]},
]
ROWS = [{"prompt": f"{n}+1=", "chosen": str(n + 1), "rejected": str(n + 12)} for n in range(12)]


@pytest.mark.parametrize("row", SAME)
def test_the_forms_of_a_row_say_the_same(row):
    assert pair_of(row, "f:1") == Pair((Message("user", "1+2="),), "3", "4", "f:1")


def test_a_conversation_may_be_longer_and_an_answer_a_call():
    pair = pair_of({"messages": EARLIER, "chosen": "3", "rejected": "4"}, "f:1")
    assert [message.role for message in pair.messages] == ["system", "user", "assistant", "user"]
    assert pair == pair_of({"chosen": [*EARLIER, RIGHT], "rejected": [*EARLIER, WRONG]}, "f:1")
    call = {"function": {"name": "add", "arguments": {"a": 1}}}
    called = {"role": "assistant", "content": None, "tool_calls": [call]}
    assert pair_of({**SAME[2], "chosen": [called]}, "f:1").chosen.calls[0].name == "add"


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz"])
def test_a_file_is_lines_or_an_array_also_compressed(tmp_path, name):
    lines = "\n\n".join(map(json.dumps, SAME)) if name.startswith("a.jsonl") else json.dumps(SAME, indent=1)
    opened = gzip.open if name.endswith(".gz") else open
    with opened(tmp_path / name, "wt") as file:
        file.write(lines)
    file = PairFile(str(tmp_path / name))
    assert len(file) == len(SAME)
    assert {(pair.chosen, pair.rejected) for pair in map(file.__getitem__, range(len(file)))} == {("3", "4")}
    # blank lines count, places in an array do too
    assert file[1].where == f"{tmp_path / name}:{3 if name.startswith('a.jsonl') else 2}"


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"chosen": None}, 'needs "chosen", a non-empty string'),
        ({"rejected": " "}, 'needs "rejected", a non-empty string'),
        ({"rejected": []}, '"rejected" must be a non-empty list of messages'),
        ({"chosen": [{"role": "assistant", "content": ""}]}, "has an empty assistant message; fill it"),
        ({"chosen": ["3"]}, "has an invalid message; write"),
        ({"prompt": None}, 'needs "prompt" or "messages", and not both'),
        ({"messages": [ASKED]}, 'needs "prompt" or "messages", and not both'),
        ({"prompt": []}, '"prompt" must be a non-empty list of messages'),
        ({"prompt": [RIGHT]}, "the conversation before the answers ends with assistant; end it with a user"),
        ({"chosen": [ASKED]}, '"chosen" ends with user; end it with an assistant message'),
        ({"chosen": [ASKED, RIGHT]}, 'has more than one message beside "prompt"; give one assistant'),
        (
            {"prompt": None, "chosen": [ASKED, RIGHT], "rejected": [*EARLIER, WRONG]},
            "do not answer the same conversation; let them differ in the last message only",
        ),
        ({"prompt": None, "chosen": [ASKED, RIGHT]}, "do not answer the same conversation"),
        ({"prompt": None, "chosen": [RIGHT, RIGHT], "rejected": [RIGHT, WRONG]}, "ends with assistant"),
    ],
)
def test_a_bad_row_is_one_sentence_with_file_and_line(tmp_path, changed, sentence):
    path = write(tmp_path / "a.jsonl", SAME[0], {**SAME[0], **changed})
    with pytest.raises(UserError) as caught:
        PairFile(path)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert sentence in str(caught.value)


@pytest.mark.parametrize("model", ["qwen3", "gpt2"])
def test_a_pair_is_what_the_policy_reads_and_would_have_sampled(load, model):
    chat = load(model).chat
    prompts = Prompts(chat, SystemPrompt("Be brief."))
    for row, opening in (
        (SAME[0], [("system", "Be brief."), ("user", "1+2=")]),
        ({**SAME[0], "prompt": EARLIER}, None),
    ):
        row = row if opening else {"messages": EARLIER, "chosen": "3", "rejected": "4"}
        pair = pair_of(row, "f.jsonl:1")
        rendered = [{"role": m.role, "content": str(m.content)} for m in prompts.messages(pair.messages)]
        if opening:
            assert [(m["role"], m["content"]) for m in rendered] == opening
        text = chat.tokenizer.apply_chat_template(rendered, tokenize=False, add_generation_prompt=True)
        read = chat.tokenizer.encode(text, add_special_tokens=False)
        assert read == [*prompts.ids(pair.messages)]
        for trajectory, answer in zip(encoded(pair, prompts), "34", strict=True):
            said = [*chat.tokenizer.encode(answer, add_special_tokens=False), chat.end_id]
            assert trajectory.token_ids == read + said
            assert trajectory.action_mask == [False] * len(read) + [True] * len(said)
            assert (trajectory.reward, trajectory.num_turns, trajectory.answer) == (None, 1, answer)


def prepared(load, configure, tmp_path, *overrides, rows=ROWS, lora=False):
    """An updater whose policy has moved away from its reference, and the pairs of a file."""
    path = write(tmp_path / "pairs.jsonl", *rows)
    config, _ = configure(
        "algorithm=dpo", f"algorithm.pairs={path}", "training.generations_per_iteration=16",
        "training.num_generations=2", *overrides,
    )  # fmt: skip
    policy = load("qwen3", use_lora=lora)
    if not lora:
        policy.keep_reference(load("qwen3").causal_model)
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter += 0.03 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    warnings = []
    pairs = usable_pairs(config, read_pairs(config), Prompts(policy.chat), [], warnings.append)
    return Updater(policy, config), pairs, warnings


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("kind", ["dpo", "ipo"])
def test_the_gradient_of_an_update_is_that_of_the_loss_of_the_texts(load, configure, tmp_path, kind, lora):
    settings = ("training.updates_per_rollout=1", "training.max_grad_norm=1e6", "algorithm.beta=0.5")
    updater, pairs, _ = prepared(
        load, configure, tmp_path, *settings, f"algorithm.preference={kind}", lora=lora
    )
    policy, reference, tokenizer = updater.policy, load("qwen3").causal_model, updater.policy.chat.tokenizer
    collected = PairCollector(updater.config, pairs).collect(0, 0, Clock())

    def logprob(model, prompt, answer):
        asked = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        read = tokenizer.encode(text, add_special_tokens=False)
        said = tokenizer.encode(f"{answer}{tokenizer.eos_token}", add_special_tokens=False)
        ids = torch.tensor([read + said])
        found = model(ids).logits[0, :-1].float().log_softmax(-1)
        return found.gather(1, ids[0, 1:, None])[len(read) - 1 :].double().sum()

    losses = []
    for chosen, _ in collected.groups:
        row = ROWS[int(chosen.problem.id.rpartition(":")[2]) - 1]
        best, worst = (
            logprob(policy.model, row["prompt"], row[name])
            - logprob(reference, row["prompt"], row[name]).detach()
            for name in ("chosen", "rejected")
        )
        losses.append(-logsigmoid(0.5 * (best - worst)) if kind == "dpo" else (best - worst - 1).square())
    assert len(losses) == 8
    expected = torch.autograd.grad(torch.stack(losses).mean(), policy.trainable())
    found = gradients_of(updater.strategy, policy.trainable())
    report = updater.run(compared(collected.groups), np.random.default_rng(0), Clock())
    assert max(grad.abs().max() for grad in expected) > 1e-3
    [gradient] = found
    flat = torch.cat([grad.flatten() for grad in expected])
    torch.testing.assert_close(gradient, flat, rtol=1e-4, atol=2e-6)
    assert update_metrics(report)["loss"] == pytest.approx(torch.stack(losses).mean().item(), abs=1e-6)


def drawn(collector, iterations, cursor=0):
    """The lines of the pairs of each iteration, one after the other from `cursor` on."""
    found = []
    for iteration in range(iterations):
        collected = collector.collect(iteration, cursor, Clock())
        assert len(collected.trajectories) == 2 * collected.problems_drawn
        found.append([int(chosen.problem.id.rpartition(":")[2]) for chosen, _ in collected.groups])
        cursor += collected.problems_drawn
    return found


def test_each_pair_is_drawn_once_an_epoch_in_an_order_of_seed_and_epoch(load, configure, tmp_path):
    updater, pairs, _ = prepared(load, configure, tmp_path)
    collector = PairCollector(updater.config, pairs)
    found = drawn(collector, 6)  # 48 places: 4 epochs of 12 pairs
    epochs = np.array(found).reshape(4, 12).tolist()
    assert all(Counter(epoch) == Counter(range(1, 13)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 4
    # the place alone says what comes next: a run that resumes draws what it would have drawn
    assert drawn(PairCollector(updater.config, pairs), 2, cursor=32) == found[4:]
    other, _ = configure(
        "algorithm=dpo", "training.generations_per_iteration=16", "training.num_generations=2", "seed=1"
    )
    assert drawn(PairCollector(other, pairs), 6) != found


def test_pairs_that_cannot_be_used_are_left_out_and_counted(load, configure, tmp_path):
    long = {"prompt": "1+" * 20 + "1=", "chosen": "2", "rejected": "3"}
    rows = [
        *ROWS,
        {**ROWS[0], "rejected": "1"},
        long,
        {**ROWS[1], "chosen": "2" * 9},
        {**ROWS[2], "rejected": "1" * 8},
        {**ROWS[3], "rejected": "1" * 7},
    ]
    settings = ("rollout.max_prompt_length=16", "rollout.max_completion_length=8")
    updater, pairs, warnings = prepared(load, configure, tmp_path, *settings, rows=rows)
    path = updater.config.algorithm.pairs
    assert warnings == [
        f"algorithm.pairs: 1 of 17 pairs are left out, the first in {path}:13: both answers are the same",
        f"algorithm.pairs: 1 of 17 pairs are left out, the first in {path}:14: the prompt is over "
        "rollout.max_prompt_length=16 (the longest has 45 tokens)",
        # with its end token an answer of 8 digits has 9 tokens
        f"algorithm.pairs: 2 of 17 pairs are left out, the first in {path}:15: an answer is over "
        "rollout.max_completion_length=8 (the longest has 10 tokens)",
    ]
    assert [*pairs.places] == [*range(12), 16]
    assert [trajectory.answer for trajectory in pairs[12]] == ["4", "1" * 7]


def test_a_prompt_that_is_held_out_is_not_trained_on(load, configure, tmp_path):
    updater, _, _ = prepared(load, configure, tmp_path)
    prompts = Prompts(updater.policy.chat, SystemPrompt("Add."))
    held = [Problem("p", (Message("user", "3+1="),)), Problem("q", (Message("user", "3+2="),))]
    warnings = []
    pairs = usable_pairs(updater.config, read_pairs(updater.config), prompts, held, warnings.append)
    assert isinstance(pairs, StoredPairs)
    assert [*pairs.places] == [place for place in range(12) if place != 3]
    assert len(warnings) == 1
    assert warnings[0].endswith(":4: the prompt is held out")


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["training.generations_per_iteration=32"],
            "has 12 pairs, and an iteration takes 16; use training.generations_per_iteration=24, or more",
        ),
        (
            ["training.generations_per_iteration=64", "training.updates_per_rollout=16"],
            "use training.generations_per_iteration=24 training.updates_per_rollout=1, or more pairs",
        ),
        (["rollout.max_prompt_length=1"], "no pair can be used (12 of 12 pairs are left out, the first in"),
        (
            ["rollout.max_completion_length=2"],
            "an answer is over rollout.max_completion_length=2 (the longest has 3",
        ),
    ],
)
def test_too_few_pairs_are_one_sentence(load, configure, tmp_path, overrides, sentence):
    with pytest.raises(UserError) as caught:
        prepared(load, configure, tmp_path, *overrides)
    assert str(caught.value).startswith(f"algorithm.pairs={tmp_path / 'pairs.jsonl'}: ")
    assert sentence in str(caught.value)


def test_too_few_that_are_left_say_what_became_of_the_others(load, configure, tmp_path):
    rows = [{**row, "rejected": row["chosen"]} if place < 5 else row for place, row in enumerate(ROWS)]
    with pytest.raises(UserError) as caught:
        prepared(load, configure, tmp_path, rows=rows)
    assert str(caught.value) == (
        f"algorithm.pairs={tmp_path / 'pairs.jsonl'}: has 7 pairs (5 of 12 pairs are left out, the first in "
        f"{tmp_path / 'pairs.jsonl'}:1: both answers are the same), and an iteration takes 8; use "
        "training.generations_per_iteration=12, or more pairs"
    )
