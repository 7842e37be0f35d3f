"""task=verifiers: environments of the package verifiers, trained through the endpoint."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from gspo_cli.agents.running import Endpoint
from gspo_cli.agents.verifiers_task import VerifiersTask
from gspo_cli.config.compose import build_config, resolved_yaml
from gspo_cli.errors import UserError
from gspo_cli.rewards.returned import RETURNED, ReturnedReward
from gspo_cli.rollout.conversations import Start
from gspo_cli.rollout.transformers_engine import TransformersEngine
from gspo_cli.run.folder import RunFolder
from gspo_cli.training.session import run_training
from tests.support.configs import composed_from_parts
from tests.support.scripted_endpoint import scripted
from tests.support.talking_runs import SMALL, logged
from tests.support.whole_runs import state
from tests.test_rollout import LIMITS, sampling

vf = pytest.importorskip("verifiers.v1", reason="the extra `verifiers` is not installed")
# of a library that the package uses for calls of tools
pytestmark = pytest.mark.filterwarnings("ignore:The 'initial' parameter is deprecated:DeprecationWarning")
MODULES = Path(__file__).resolve().parent / "support" / "verifiers_environments"


@pytest.fixture(autouse=True)
def modules(monkeypatch):
    monkeypatch.syspath_prepend(str(MODULES))
    monkeypatch.setenv("PYTHONPATH", str(MODULES))  # of servers of tools


def task_of(environment_id="echo_words", **settings):
    return VerifiersTask("verifiers", "", "", **({"environment_id": environment_id, "heldout": 2} | settings))


def talked(policy, task, samples=2, limits=LIMITS, warn=lambda text: None, engine=None):
    """Conversations about all training problems of a task."""
    engine = engine or TransformersEngine(policy, 256)
    begun = [
        Start(problem, (0, place, sample), 7)
        for place, problem in enumerate(task.train_problems())
        for sample in range(samples)
    ]
    with task.host(engine, policy.chat, warn) as host:
        found, _ = host.roll_out(begun, sampling(policy.chat, 12), limits, 3)
        host.tell(host.notes)
    return found


def answers(trajectory):
    return [str(message.content) for message in trajectory.messages if message.role == "assistant"]


def replayed(name, row, said, **arguments):
    """The package alone, with an agent of its own, on what the policy said: total, scores and metrics."""
    seat = {"harness": {"id": "plain-agent"}, "runtime": {"type": "subprocess"}}
    played = "player" if name == "guess_number" else "agent"
    config = vf.resolve_env_config({"taskset": {"id": name}, played: seat, **arguments})

    async def run(url):
        environment = vf.load_environment(config)
        context = vf.ModelContext("m", vf.EvalClientConfig(base_url=url, api_key_var="NONE"))
        [task] = [each for each in environment.taskset.take(row + 1) if each.data.idx == row]
        async with environment.serving():
            [slot] = environment.slots(task)
            return await environment.run_slot(slot, context)

    with scripted(*({"role": "assistant", "content": text} for text in said)) as (url, _):
        [trace] = asyncio.run(run(url)).traces
    return trace.reward, {name: each.score for name, each in trace.rewards.items()}, trace.metrics


# --- what a conversation is, and what it earns


@pytest.mark.parametrize(
    ("name", "settings", "turns"),
    [("echo_words", {}, 1), ("guess_number", {"problems": 5, "arguments": {"rounds": 3}}, 3)],
)
def test_rewards_and_scores_are_the_packages_own(load, name, settings, turns):
    task, policy = task_of(name, **settings), load("qwen3")
    trajectories = talked(policy, task)
    assert len({repr(answers(trajectory)) for trajectory in trajectories}) > 3
    for trajectory in trajectories:
        if trajectory.excluded is not None:
            continue
        [found] = ReturnedReward().compute_rewards([trajectory])
        row, said = int(trajectory.problem.id), answers(trajectory)
        assert len(said) == turns
        total, scores, metrics = replayed(name, row, said, **settings.get("arguments", {}))
        assert found.total_reward == total
        assert found.component_rewards == {**metrics, **scores}
    assert sum(trajectory.excluded is None for trajectory in trajectories) >= 6


def test_components_are_scores_before_weights_and_metrics():
    task = task_of()
    [problem] = [
        p for p in (*task.train_problems(), *task.heldout_problems()) if p.metadata["word"] == "stone"
    ]
    with scripted({"role": "assistant", "content": "stonex"}) as (url, asked):
        found = asyncio.run(task.make_agent().run(problem, Endpoint(url, "key", "m", 0)))
    assert found.component_rewards == {"overlap": 5 / 6, "long": 6 / 20, "said": 1.0, "letters": 6.0}
    assert found.total_reward == 0.5 * (5 / 6) + 0.25 * (6 / 20) + 0.25 * 1.0
    assert asked[0]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Say stone."},
    ]


def test_a_conversation_is_one_sequence_of_what_was_sampled(load):
    policy, task = load("qwen3"), task_of("guess_number", problems=5)
    for trajectory in talked(policy, task):
        assert [m.role for m in trajectory.messages] == ["user", "assistant"] * 3
        assert trajectory.segments == []
        assert trajectory.messages[2].content.endswith(("is too low.", "is too high."))
        spans = [
            [
                token
                for token, turn in zip(trajectory.token_ids, trajectory.turn_ids, strict=True)
                if turn == k
            ]
            for k in range(3)
        ]
        assert [policy.chat.text(ids).strip() for ids in spans] == answers(trajectory)


def test_conversations_are_the_same_to_the_bit(load):
    policy = load("qwen3")
    first, second = (talked(policy, task_of("guess_number", problems=5)) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert one.token_ids == other.token_ids
        assert one.sampling_logprobs == other.sampling_logprobs
        assert one.outcome == other.outcome


def called(name, **arguments):
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {"id": f"id-{name}-{len(arguments)}", "type": "function", "function": function}


def test_tools_are_announced_called_and_answered_and_calls_that_are_denied_are_not_made():
    task = task_of("weigh_things", heldout=1)
    problems = [*task.train_problems(), *task.heldout_problems()]
    [problem] = [each for each in problems if each.metadata["thing"] == "anvil"]
    calls = [called("scales_weigh", thing="anvil"), called("guess")]
    calls.append(called("scales_weigh", thing="feather", twice=True))
    turns = (
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "assistant", "content": "It weighs 50 kg."},
    )
    with scripted(*turns) as (url, asked):
        found = asyncio.run(task.make_agent().run(problem, Endpoint(url, "key", "m", 0)))
    assert [tool["function"]["name"] for tool in asked[0]["tools"]] == ["scales_weigh"]
    heard = asked[1]["messages"][-3:]
    assert [message["tool_call_id"] for message in heard] == [call["id"] for call in calls]
    assert [message["content"] for message in heard] == [
        "anvil: 50 kg",
        "error: there is no tool guess; the tools are scales_weigh",
        "Feathers may not be weighed.",
    ]
    assert (found.total_reward, dict(found.component_rewards)) == (1.0, {"right": 1.0})


def test_what_an_environment_raises_excludes_the_conversation_with_its_reason(load):
    warnings = []
    trajectories = talked(load("qwen3"), task_of(), warn=warnings.append)
    failed = {t.problem.metadata["word"]: t.excluded for t in trajectories if t.excluded}
    assert set(failed) == {"maple"}
    assert "TaskError" in failed["maple"]
    assert "maple cannot be measured" in failed["maple"]


def test_a_limit_of_the_run_ends_a_conversation_which_is_scored(load):
    limits = type(LIMITS)(max_turns=2, max_prompt_length=200, max_positions=512)
    for trajectory in talked(load("qwen3"), task_of("guess_number", problems=5), limits=limits):
        assert trajectory.excluded is None
        assert trajectory.finish_reason.name == "turns"
        assert trajectory.num_turns == 2
        found = trajectory.outcome.details[RETURNED]
        total, _, _ = replayed("guess_number", int(trajectory.problem.id), answers(trajectory), rounds=2)
        assert found.total_reward == total


def test_a_conversation_that_becomes_too_long_ends_and_is_scored(load):
    limits = type(LIMITS)(max_turns=9, max_prompt_length=200, max_positions=90)
    task = task_of("guess_number", problems=5, arguments={"rounds": 9})
    trajectories = talked(load("qwen3"), task, samples=1, limits=limits)
    assert {t.finish_reason.name for t in trajectories} == {"length"}
    for trajectory in trajectories:
        assert (trajectory.excluded, trajectory.num_turns < 9) == (None, True)
        assert trajectory.outcome.details[RETURNED].component_rewards["near"] > 0


def test_several_runs_of_the_policy_in_one_episode_are_no_conversation(load):
    several = task_of(arguments={"id": "best-of-n", "n": 2})
    found = talked(load("qwen3"), several, samples=1)
    reasons = {t.excluded for t in found if t.problem.metadata["word"] != "maple"}
    assert reasons == {
        "the agent raised EpisodeError: agent ran 2 times in the episode; a conversation has one reward"
    }


def odd(**arguments):
    task = task_of("odd_scores", heldout=1, arguments=arguments)
    with scripted({"role": "assistant", "content": "1"}) as (url, _):
        problem = task.train_problems()[0]
        return asyncio.run(task.make_agent().run(problem, Endpoint(url, "key", "m", 0)))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"taskset": {"task": {"kind": "nan"}}}, "the score right is nan, not a finite number"),
        ({"taskset": {"task": {"kind": "none"}}}, "the environment has no rewards"),
        ({"trained": False}, "the environment says that agent is not to be trained"),
        (
            {"taskset": {"task": {"kind": "slow"}}, "agent": {"timeout": {"scoring": 0.05}}},
            "right gave no score .scoring_timeout.",
        ),
    ],
)
def test_an_episode_without_a_score_has_no_reward(arguments, reason):
    with pytest.raises(Exception, match=f"^{reason}$") as caught:
        odd(**arguments)
    assert type(caught.value).__name__ == "EpisodeError"


def test_a_metric_by_the_name_of_a_reward_keeps_a_name_of_its_own():
    assert odd().component_rewards == {"right": 0.5, "right_metric": 3.0}


# --- problems


def test_held_out_problems_are_of_the_same_tasks_or_of_other_arguments():
    same = task_of(heldout=2)
    words = [[p.metadata["word"] for p in side] for side in (same.train_problems(), same.heldout_problems())]
    assert [len(side) for side in words] == [4, 2]
    assert set(words[0]) | set(words[1]) == {"river", "stone", "cloud", "maple", "ember", "frost"}
    other = task_of(heldout_arguments={"taskset": {"split": "test"}}, heldout=5)
    assert [p.metadata["word"] for p in other.heldout_problems()] == ["ocean", "river"]
    assert {p.metadata["word"] for p in other.train_problems()} == {
        "stone",
        "cloud",
        "maple",
        "ember",
        "frost",
    }
    assert other.notes() == ["1 training problems are left out: they are also held out"]
    assert same.data_stamp() == task_of(heldout=2).data_stamp() != other.data_stamp()


def test_held_out_conversations_are_those_of_the_held_out_environment():
    task = task_of(heldout_arguments={"taskset": {"split": "test", "task": {"metrics": {"letters": {}}}}})
    problem = task.heldout_problems()[0]
    with scripted({"role": "assistant", "content": "ocean"}) as (url, asked):
        found = asyncio.run(task.make_agent().run(problem, Endpoint(url, "key", "m", 0)))
    assert asked[0]["messages"][-1]["content"] == "Say ocean."
    assert found.component_rewards["overlap"] == 1.0


def load_guessing(rounds=2):
    return vf.load_environment(vf.resolve_env_config({"taskset": {"id": "guess_number"}, "rounds": rounds}))


def load_nothing():
    return None


@pytest.mark.parametrize("given", [{}, {"rounds": 4}])
def test_a_function_can_make_the_environment(load, given):
    task = task_of(f"{__name__}:load_guessing", arguments=given, problems=4)
    [*trajectories] = talked(load("qwen3"), task, samples=1)
    assert {t.num_turns for t in trajectories} == {given.get("rounds", 2)}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"environment_id": ""}, "task.environment_id: say which environment"),
        (
            {"environment_id": "no_such_env"},
            "task.environment_id=no_such_env: ModuleNotFoundError.*not found",
        ),
        ({"environment_id": "json"}, "task.environment_id=json: TypeError.*exports no Taskset"),
        ({"environment_id": f"{__name__}:nothing"}, "cannot be imported"),
        ({"environment_id": f"{__name__}:vf"}, "is not a function"),
        ({"environment_id": f"{__name__}:load_nothing"}, "returned None, which is no verifiers.v1.Env"),
        ({"environment_id": f"{__name__}:load_guessing", "arguments": {"x": 1}}, "TypeError.*unexpected"),
        ({"arguments": {"taskset": {"splat": 1}}}, "task.arguments.taskset.splat: Extra inputs"),
        ({"arguments": {"agent": {"max_turns": "x"}}}, "task.arguments.agent.max_turns: "),
        ({"heldout_arguments": {"taskset": {"splat": 1}}}, "task.heldout_arguments.taskset.splat: Extra"),
        ({"arguments": {"taskset": {"id": "other"}}}, "task.arguments.taskset: must be a mapping without id"),
        ({"arguments": {"taskset": {"split": "none"}}}, "task.environment_id=echo_words: KeyError: 'none'"),
        ({"arguments": {"agent": {"retries": {"max_retries": 2}}}}, "leave retries out of task.arguments"),
        ({"arguments": "x"}, "task.arguments=x: must be a mapping"),
        ({"environment_id": "guess_number"}, "its tasks have no end; say how many.*task.problems"),
        ({"problems": 0}, "task.problems=0"),
        ({"heldout": 0}, "task.heldout"),
        ({"heldout": 6}, "task.heldout=6: leaves none of 6"),
        ({"concurrency": 0}, "task.concurrency"),
        ({"system_prompt": "x"}, "task.system_prompt=x: the environment writes"),
        (
            {"environment_id": "two_players"},
            "the policy would play first, second, but a conversation has one",
        ),
        (
            {"environment_id": "needs_container"},
            "its tasks need a container; give one with task.arguments.agent",
        ),
    ],
)
def test_bad_settings_are_refused_in_one_sentence(settings, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        task_of(**settings).check_agent()
    assert "\n" not in str(caught.value)


# --- whole runs


def whole(path, reporter, *chosen):
    node = composed_from_parts(
        *(each for each in SMALL if not each.startswith(("task", "model.cold"))),
        "task=verifiers", "model.cold_start.steps=0", *chosen,
    )  # fmt: skip
    folder = RunFolder(path)
    folder.create(resolved_yaml(node))
    return folder, run_training(build_config(node), folder, reporter)


def test_a_run_trains_on_an_environment_and_a_second_is_the_same_to_the_bit(tmp_path, reporter):
    chosen = ["task.environment_id=guess_number", "task.problems=12", "task.heldout=4"]
    one, summary = whole(tmp_path / "one", reporter, *chosen)
    other, _ = whole(tmp_path / "other", reporter, *chosen)
    assert summary["status"] == "completed"
    assert [line["excluded"] for line in one.read("metrics.jsonl")] == [0, 0]
    assert {"rewards/near/mean", "rewards/guesses/mean"} <= set(one.read("metrics.jsonl")[0])
    assert logged(one, "metrics.jsonl") == logged(other, "metrics.jsonl")
    assert logged(one, "evals.jsonl") == logged(other, "evals.jsonl")
    assert state(one.path)[0] == state(other.path)[0]
