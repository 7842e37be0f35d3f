"""task=agent: a run whose conversations are those of an agent that exists already."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import dataclass, fields

import httpx
import pytest

from gspo_cli.agents.host import AgentHost
from gspo_cli.agents.rollout import Waits
from gspo_cli.agents.running import FunctionAgent
from gspo_cli.agents.task import AgentTask
from gspo_cli.config.choices import Engine, OldLogprobs
from gspo_cli.config.compose import build_config, resolved_yaml
from gspo_cli.config.schema import RunConfig
from gspo_cli.config.trust import marked
from gspo_cli.errors import UserError
from gspo_cli.rollout.transformers_engine import TransformersEngine
from gspo_cli.run.folder import RunFolder
from gspo_cli.tasks.customer_service import CustomerService
from gspo_cli.training.session import run_training
from gspo_cli.types import FinishReason, Message, Trajectory
from tests.support.configs import composed_from_parts
from tests.support.talking_runs import SMALL, configured, logged, trained
from tests.support.whole_runs import state
from tests.test_rollout import LIMITS, sampling, starts

pytestmark = pytest.mark.long

openai = pytest.importorskip("openai", reason="needs the extra dev")

FLUENT = [  # enough of a cold start that turns end by themselves and some are calls
    "model.cold_start.steps=40",
    "model.cold_start.batch_tokens=2000",
    "model.cold_start.learning_rate=0.01",
    "rollout.max_completion_length=24",
    "rollout.old_logprobs=recompute",
    "task.demonstrations_count=60",
]
ENVIRONMENT_ONLY = ("environment/",)


@dataclass
class ShopAgent(AgentTask):
    """The settings and problems of customer_service, for an agent that steps its environment."""

    difficulty: int = 1
    careless: float = 0.6
    problems: int = 2000
    demonstrations_count: int = 2000
    max_turns: int = 14
    tool_format: str = "auto"

    @property
    def shop(self):
        shared = {field.name for field in fields(CustomerService)} & {field.name for field in fields(self)}
        return CustomerService(**{name: getattr(self, name) for name in shared - {"tool_format"}})

    def train_problems(self):
        return self.shop.train_problems()

    def heldout_problems(self):
        return self.shop.heldout_problems()

    def demonstrations(self):
        return self.shop.demonstrations()

    def data_stamp(self):
        return ""

    def notes(self):
        return []


def ask(endpoint, messages, **more):
    with openai.OpenAI(base_url=endpoint.base_url, api_key=endpoint.api_key, max_retries=0) as client:
        found = client.chat.completions.create(model=endpoint.model, messages=messages, **more)
    return found.choices[0].message.content


SHOP = CustomerService("shop", "", "")


def serve(problem, endpoint):
    """Ten lines that step the shop: the same task as customer_service, through the endpoint."""
    environment, done = SHOP.environment(), False
    said = list(environment.reset(problem, endpoint.seed))
    seen = Trajectory(problem, [], [], [], [], [], FinishReason.stop)
    while not done:
        try:
            text = ask(endpoint, [{"role": m.role, "content": m.content} for m in said])
        except openai.BadRequestError:  # it has had the turns that it may have
            break
        step = environment.step(text)
        seen.turn_rewards.append(step.reward)
        seen.progress.append(step.progress)
        said += [Message("assistant", text), *step.messages]
        done = step.done
    seen.messages, seen.outcome = said, environment.finish()
    last = [message for message in said if message.role == "assistant"][-1]
    return SHOP.reward().compute_reward(seen, last, {})


def through_endpoint(agent="serve", *more):
    target = f"task._target_={__name__}.ShopAgent"
    return [target, f"+task.agent={__name__}:{agent}", "+task.path=none.jsonl", *more]


def lines(folder, log, without=()):
    return [
        {k: v for k, v in line.items() if k not in without and not k.startswith(ENVIRONMENT_ONLY)}
        for line in logged(folder, log)
    ]


@pytest.mark.parametrize("algorithm", ["gspo", "grpo"])
def test_the_same_task_through_the_endpoint_gives_the_same_weights_to_the_bit(tmp_path, reporter, algorithm):
    chosen = [*FLUENT, f"algorithm={algorithm}", "logging.samples_per_iteration=8"]
    inside = trained(tmp_path / "inside", reporter, *chosen)
    outside = trained(tmp_path / "outside", reporter, *chosen, *through_endpoint())
    for log in ("metrics.jsonl", "evals.jsonl"):
        assert lines(inside, log) == lines(outside, log)
    samples = [lines(folder, "samples.jsonl") for folder in (inside, outside)]
    assert len(samples[0]) == 16
    for one, other in zip(*samples, strict=True):
        assert {k: v for k, v in one.items() if k != "messages"} == {
            k: v for k, v in other.items() if k != "messages"
        }
        heard = other["messages"]  # what the environment says last is read by nobody
        assert heard == one["messages"][: len(heard)]
    (model, optimizer, *_), (model2, optimizer2, *_) = (state(folder.path) for folder in (inside, outside))
    assert model == model2
    assert all(
        (optimizer2[key][name] == value).all()
        for key, moments in optimizer.items()
        for name, value in moments.items()
    )


def test_a_run_that_is_interrupted_goes_on_to_the_same_numbers(tmp_path, reporter):
    agent = through_endpoint()
    whole = trained(tmp_path / "whole", reporter, *FLUENT, *agent)
    parts = trained(tmp_path / "parts", reporter, *FLUENT, *agent, "training.num_outer_iterations=1")
    config, yaml = configured(*FLUENT, *agent)
    parts.write_config(yaml)
    run_training(config, parts, reporter)
    assert lines(whole, "metrics.jsonl") == lines(parts, "metrics.jsonl")
    assert state(whole.path)[0] == state(parts.path)[0]


LATE = []


def talkative(problem, endpoint):
    """Edits its history, and asks for what it does not get."""
    LATE.append(endpoint)
    first = ask(endpoint, [{"role": "user", "content": "hi"}], temperature=0.2, seed=7)
    ask(endpoint, [{"role": "system", "content": "sum up"}, {"role": "user", "content": first or "-"}])
    if problem.id.endswith("0"):
        raise ValueError("no such order")
    return len(first) % 5 / 4


def test_what_a_person_should_know_of_an_agent_is_said_once(tmp_path, reporter):
    folder = trained(tmp_path / "run", reporter, *FLUENT, *through_endpoint("talkative"))
    said = [text for text in reporter.warnings if text.startswith("task.agent:")]
    assert [sum(mark in text for text in said) for mark in ("temperature=0.2", "sequence:", "no such")] == [
        1
    ] * 3
    assert len(said) == 3
    metrics = folder.read("metrics.jsonl")
    assert {line["environment/sequences"] for line in metrics if not line["excluded"]} <= {2.0}
    assert {line["environment/timeouts"] for line in metrics} == {0.0}
    evals = folder.read("evals.jsonl")
    assert all(line["num_turns"] == 2.0 for line in evals)
    sample = folder.read("samples.jsonl")[0]
    assert [m["role"] for m in sample["messages"]] == ["user", "assistant", "system", "user", "assistant"]
    with pytest.raises(httpx.ConnectError):  # the run is over, and its endpoint with it
        httpx.get(f"{LATE[-1].base_url}/models")


def test_calls_after_a_rollout_are_told_that_it_is_over(load):
    seen, policy = [], load("qwen3")

    def agent(problem, endpoint):
        seen.append(endpoint)
        return float(len(ask(endpoint, [{"role": "user", "content": "hi"}])))

    engine = TransformersEngine(policy, 256)
    with AgentHost(engine, policy.chat, FunctionAgent(agent), Waits()) as host:
        first, _ = host.roll_out(starts(), sampling(policy.chat, 8), LIMITS, 3)
        with pytest.raises(openai.APIStatusError) as caught:
            ask(seen[0], [{"role": "user", "content": "late"}])
        assert caught.value.status_code == 410
        second, _ = host.roll_out(starts(), sampling(policy.chat, 8), LIMITS, 3)
        assert [t.token_ids for t in first] == [t.token_ids for t in second]
        assert len({endpoint.base_url for endpoint in seen}) == 1
        assert len({endpoint.api_key for endpoint in seen}) == len(seen)


def test_credit_by_turns_is_refused_where_a_conversation_has_several_sequences(tmp_path, reporter):
    chosen = ["algorithm=gspo_token", "algorithm.credit=turn", *through_endpoint("talkative")]
    with pytest.raises(UserError, match=r"algorithm\.credit=turn: .* has 2 sequences.*credit=trajectory"):
        trained(tmp_path / "run", reporter, *FLUENT, *chosen)


# --- settings


def task_of(tmp_path, rows=({"prompt": "a"}, {"prompt": "b"}), **settings):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return AgentTask(
        "agent", "", "", path=str(path), **({"heldout": 1, "agent": f"{__name__}:serve"} | settings)
    )


def problems(task):
    return sorted((*task.train_problems(), *task.heldout_problems()), key=lambda problem: problem.id)


def test_all_columns_of_a_row_are_the_agents(tmp_path):
    rows = ({"id": "1", "order": 482, "tone": "kind"}, {"id": "2", "prompt": "Hi", "answer": 7, "db": "a"},
            {"id": "3", "prompt": "Hi", "answer": 7, "db": "b"})  # fmt: skip
    first, second, third = problems(task_of(tmp_path, rows))
    assert json.loads(first.messages[0].content) == rows[0] == first.metadata
    assert (second.messages, second.answer, second.metadata["db"]) == ((Message("user", "Hi"),), "7", "a")
    assert third.metadata["db"] == "b", "rows that differ in any column are different problems"


def test_columns_and_verifiers_work_as_for_data(tmp_path):
    rows = tuple({"q": f"{i}+1", "gold": str(i + 1)} for i in range(3))
    named = task_of(tmp_path, rows, prompt="q", answer="gold", verifier="numeric")
    assert {(p.messages[0].content, p.answer) for p in problems(named)} == {
        ("0+1", "1"),
        ("1+1", "2"),
        ("2+1", "3"),
    }
    templated = task_of(tmp_path, rows, template="{{q}} = ?", filter="q != '2+1'")
    assert {p.messages[0].content for p in problems(templated)} == {"0+1 = ?", "1+1 = ?"}
    with pytest.raises(UserError, match='has no column "answer"'):
        problems(task_of(tmp_path, verifier="numeric"))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"agent": None}, "task.agent: say what to train"),
        ({"command": "true"}, "task.agent: say what to train"),
        ({"agent": None, "command": "no-such-program x"}, "no-such-program is not found"),
        ({"agent": None, "command": "'"}, "is no command"),
        ({"agent": None, "command": ""}, "task.command: is empty"),
        ({"agent": "no_such_module:run"}, "task.agent=no_such_module.run: cannot be imported"),
        ({"agent": f"{__name__}:FLUENT"}, "is not a function"),
        ({"examples": 1}, "task.examples=1: the agent writes its own prompts"),
        ({"system_prompt": "x"}, "task.system_prompt=x: the agent writes its own prompts"),
        ({"concurrency": 0}, "task.concurrency"),
        ({"return_share": 1.5}, "task.return_share=1.5"),
        ({"return_share": 0.5}, "nothing to weigh it against"),
    ],
)
def test_bad_settings_are_refused_in_one_sentence(tmp_path, settings, sentence):
    def use():
        task = task_of(tmp_path, **settings)
        task.check_agent()
        task.reward()

    with pytest.raises(UserError, match=sentence.replace("(", r"\(")):
        use()


def test_vllm_runs_agents_in_lockstep_only():
    chosen = [
        "task=agent",
        f"task.agent={__name__}:serve",
        "task.path=rows.jsonl",
        "rollout=vllm",
        "hardware=cpu",
    ]
    assert build_config(composed_from_parts(*chosen)).rollout.engine is Engine.vllm
    with pytest.raises(UserError, match=r"task\.schedule=continuous: vLLM .*use task\.schedule=lockstep"):
        build_config(composed_from_parts(*chosen, "task.schedule=continuous"))


def test_what_a_strangers_run_would_execute_is_marked():
    values = {
        "task": {"_target_": "gspo_cli.agents.task.AgentTask", "agent": "theirs:run", "command": "rm x"}
    }
    assert {item.key for item in marked(values, RunConfig)} == {"task.agent", "task.command"}


def test_old_logprobs_are_recomputed_by_default(tmp_path, reporter):
    chosen = [each for each in FLUENT if "old_logprobs" not in each]
    folder = trained(tmp_path / "run", reporter, *chosen, *through_endpoint())
    assert "old_logprobs: recompute" in folder.config.read_text()
    config, _ = configured(*chosen, *through_endpoint())
    assert config.rollout.old_logprobs is OldLogprobs.auto


PROGRAM = """
import json, os, sys, urllib.request
problem = json.load(sys.stdin)
body = json.dumps({"model": "m", "messages": problem["messages"]}).encode()
headers = {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"], "Content-Type": "application/json"}
url = os.environ["OPENAI_BASE_URL"] + "/chat/completions"
answer = json.load(urllib.request.urlopen(urllib.request.Request(url, body, headers)))
print(json.dumps({"reward": len(answer["choices"][0]["message"]["content"]) % 7 / 6}))
"""


def test_a_program_is_trained_from_the_command_line_of_a_run(tmp_path, reporter, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "agent.py").write_text(PROGRAM)
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"prompt": "count {i}"}}\n' for i in range(12)))
    node = composed_from_parts(
        *(each for each in SMALL if not each.startswith(("task", "model.cold"))),
        "task=agent", f"task.command={sys.executable} agent.py", "task.path=rows.jsonl", "task.heldout=4",
        "model.cold_start.steps=0",
    )  # fmt: skip
    folder = RunFolder(tmp_path / "run")
    folder.create(resolved_yaml(node))
    summary = run_training(build_config(node), folder, reporter)
    assert summary["status"] == "completed"
    assert [line["excluded"] for line in folder.read("metrics.jsonl")] == [0, 0]
    assert "old_logprobs: recompute" in folder.config.read_text()


def test_a_client_in_this_process_reports_no_request(load, caplog):
    """gspo-train shows what is logged from INFO on: a line for each request would hide the run."""
    policy = load("qwen3")

    def agent(problem, endpoint):
        return float(len(ask(endpoint, [{"role": "user", "content": "hi"}])))

    engine = TransformersEngine(policy, 256)
    with (
        caplog.at_level(logging.INFO),
        AgentHost(engine, policy.chat, FunctionAgent(agent), Waits()) as host,
    ):
        host.roll_out(starts()[:2], sampling(policy.chat, 8), LIMITS, 3)
    assert [record for record in caplog.records if record.name.startswith("httpx")] == []
