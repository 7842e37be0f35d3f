"""train_agent: an agent that exists already, trained by a script."""

from __future__ import annotations

import json

import pytest

from gspo_cli import Endpoint, GSPOConfig, Problem, train_agent
from gspo_cli.console.words import next_commands
from gspo_cli.errors import UserError
from gspo_cli.rewards.base import RewardFunction
from gspo_cli.run.folder import RunFolder
from gspo_cli.types import RewardResult
from tests.support.command_line import gspo_train
from tests.support.talking_runs import SMALL

pytestmark = pytest.mark.long

openai = pytest.importorskip("openai", reason="needs the extra dev")
ROWS = [{"question": f"how many is {i}?", "number": i} for i in range(10)]
OVERRIDES = [
    *(text for text in SMALL if text.startswith(("model.shape", "evaluation.", "hardware."))),
    "model.cold_start.steps=0",
]


async def count(problem: Problem, endpoint: Endpoint) -> float:
    async with openai.AsyncOpenAI(base_url=endpoint.base_url, api_key=endpoint.api_key) as client:
        asked = [{"role": "user", "content": problem.metadata["question"]}]
        found = await client.chat.completions.create(model=endpoint.model, messages=asked)
    return len(found.choices[0].message.content) % 5 / 4


def config(folder, *more):
    small = {"num_outer_iterations": 1, "num_generations": 4, "generations_per_iteration": 8}
    return GSPOConfig(**small, max_completion_length=8, output_dir=folder, overrides=[*OVERRIDES, *more])


def test_a_function_is_trained_and_can_be_resumed_by_a_command(tmp_path, reporter):
    trained = train_agent(count, ROWS, config(tmp_path), model="tiny", reporter=reporter)
    folder = RunFolder(trained.run_folder)
    assert trained.summary["status"] == "completed"
    assert trained.policy is not None
    assert [json.loads(line) for line in (folder.path / "problems.jsonl").read_text().splitlines()] == ROWS
    assert f"agent: {__name__}.count" in folder.config.read_text()
    assert (folder.read("metrics.jsonl")[0]["excluded"], folder.read("evals.jsonl")[0]["num_problems"]) == (
        0,
        2,
    )
    done = gspo_train(f"resume={folder.path}", "training.num_outer_iterations=2")
    assert done.returncode == 0, done.stderr
    assert [line["iteration"] for line in folder.read("metrics.jsonl")] == [1, 2]


def test_a_function_that_only_the_script_has_is_trained_and_said_to_be_lost_to_commands(tmp_path, reporter):
    def inner(problem: Problem, endpoint: Endpoint) -> float:
        with openai.OpenAI(base_url=endpoint.base_url, api_key=endpoint.api_key) as client:
            asked = [{"role": "user", "content": problem.metadata["question"]}]
            return float(len(client.chat.completions.create(model="m", messages=asked).id) % 2)

    trained = train_agent(inner, ROWS, config(tmp_path), model="tiny", reporter=reporter)
    assert [why for _, why in next_commands(trained.summary)] == ["talk to the model"]
    done = gspo_train(f"resume={trained.run_folder}", "training.num_outer_iterations=2")
    assert done.returncode == 2
    assert "which a script gave, and no command can find; put it into a module" in done.stderr


class Short(RewardFunction):
    def compute_reward(self, trajectory, turn, context):
        return RewardResult(1 / (1 + len(turn.content)), {"length": len(turn.content)})


def test_a_reward_can_score_in_place_of_the_agent(tmp_path, reporter):
    trained = train_agent(count, ROWS, config(tmp_path), "tiny", reward=Short(), reporter=reporter)
    [line] = RunFolder(trained.run_folder).read("metrics.jsonl")
    assert line["rewards/length/mean"] > 0


@pytest.mark.parametrize(
    ("run", "problems", "sentence"),
    [
        ("count", ROWS, "run: is a str; give a function"),
        (count, [1, 2], r"problems\[0\]: is a int; give a dict of columns"),
        (count, [{"a": object()}, {}], r"problems\[0\]: cannot be written as JSON"),
        (count, [{"a": 1}], "problems: has 1; give at least two"),
        (count, "absent.jsonl", "task.path=absent.jsonl: "),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, run, problems, sentence):
    with pytest.raises(UserError, match=sentence):
        train_agent(run, problems, config(tmp_path), model="tiny")
