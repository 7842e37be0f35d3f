"""task=agent on two ranks under DeepSpeed ZeRO: each serves its own conversations."""

from __future__ import annotations

import json
import sys

import pytest

from tests.support.command_line import gspo_train
from tests.test_zero import near, ranks, read

pytestmark = pytest.mark.long

pytest.importorskip("deepspeed", reason="deepspeed is not installed")
pytest.importorskip("openai", reason="needs the extra dev")

AGENT = """
from openai import OpenAI


def run(problem, endpoint):
    if problem.metadata["number"] % 5 == 4:
        raise ValueError(f"no such order {problem.metadata['number']}")
    with OpenAI(base_url=endpoint.base_url, api_key=endpoint.api_key) as client:
        said = [{"role": "user", "content": f"{problem.metadata['number']}+{endpoint.seed % 7}="}]
        for _ in range(2):
            found = client.chat.completions.create(model=endpoint.model, messages=said, temperature=0.3)
            said += [found.choices[0].message, {"role": "user", "content": "go on"}]
    return len(found.choices[0].message.content) % 5 / 4
"""
SETTINGS = [
    "task=agent", "task.agent=mine:run", "task.path=rows.jsonl", "task.heldout=6", "model.cold_start.steps=0",
    *(f"model.shape.{name}" for name in ("hidden_size=32", "layers=2", "head_dim=8", "intermediate_size=48")),
    "training.num_outer_iterations=2", "training.num_generations=4", "training.generations_per_iteration=24",
    "rollout.max_completion_length=8", "evaluation.samples=0", "hardware.threads=1",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _ranks_start_at_once(warm_python, monkeypatch):
    monkeypatch.setattr(sys, "executable", warm_python)


def test_two_ranks_train_what_one_process_does_and_say_the_same(tmp_path, capfd):
    (tmp_path / "mine.py").write_text(AGENT)
    rows = [json.dumps({"number": number}) for number in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    done = {}
    for name, hardware in (("one", ["hardware=cpu"]), ("two", ranks(2))):
        capfd.readouterr()
        done[name] = gspo_train(*SETTINGS, f"hydra.run.dir={tmp_path / name}", *hardware, cwd=tmp_path)
        assert done[name].returncode == 0, done[name].stderr
    for log in ("metrics.jsonl", "evals.jsonl"):
        one, two = read(tmp_path / "one", log), read(tmp_path / "two", log)
        assert two == [near(line) for line in one] != []
    assert 0 < one[0]["excluded"] < 6
    metrics = read(tmp_path / "two", "metrics.jsonl")
    assert sum(line["excluded"] for line in metrics) % 4 == 0, "whole groups, on either rank"
    assert sum(line["excluded"] for line in metrics) > 0
    printed = capfd.readouterr()
    printed = printed.out + printed.err
    assert printed.count("a conversation is left out: the agent raised ValueError: no such order") == 1
    assert printed.count("it asks for temperature=0.3, which has no effect") == 1
