"""The Python API: the guide's script runs as written, and is the same run as the command's."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import gspo_cli
from gspo_cli import (
    CONVERSATION_CONFIGS,
    AgentConfig,
    ConversationEnvironment,
    GSPOConfig,
    MultiTurnAgent,
    RewardFunction,
    RewardResult,
    create_customer_service_reward,
    get_config_for_task,
    train_with_gspo,
    train_with_gspo_token,
)
from gspo_cli.console.words import next_commands
from gspo_cli.errors import UserError
from gspo_cli.run.folder import RunFolder
from gspo_cli.types import Message
from tests.support.api_runs import CARDS
from tests.support.command_line import call, gspo_train
from tests.support.talking_runs import SMALL, configured, logged, trained

ROOT = Path(__file__).parent.parent
OVERRIDES = [text for text in SMALL if text.startswith(("model.", "evaluation.", "hardware."))]
TASK = {"demonstrations_count": 50, "problems": 60, "heldout": 4, "max_turns": 8}


class Polite(RewardFunction):
    """Differs inside every group, and looks at all that a reward is given."""

    def __init__(self, weight: float = 1.0):
        self.weight = weight

    async def compute_reward(self, trajectory, turn, context):
        assert context["problem"] is trajectory.problem
        value = self.weight * (sum(trajectory.token_ids) % 7) / 7
        return RewardResult(total_reward=value, component_rewards={"polite": value}, metadata={})


class Brief(RewardFunction):
    def compute_reward(self, trajectory, turn, context):
        return RewardResult(1 / (1 + len(turn.content)))


def settings(folder, **changes):
    base = get_config_for_task("customer_service", model_name="tiny")
    small = {"overrides": OVERRIDES, "output_dir": folder, "max_turns": 8}
    return GSPOConfig.from_training_config(base, **small | changes)


def train(config, reporter, reward=None, function=train_with_gspo, environment=None, **agent):
    environment = environment or ConversationEnvironment(task="customer_service", **TASK)
    return asyncio.run(function(config, MultiTurnAgent(AgentConfig(**agent)), environment, reward, reporter))


def test_all_names_are_there():
    assert set(gspo_cli.__all__) <= set(dir(gspo_cli))
    assert all(getattr(gspo_cli, name) is not None for name in gspo_cli.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = gspo_cli.nothing


def test_importing_the_package_and_its_settings_loads_no_torch():
    script = (
        "import sys, gspo_cli; from gspo_cli import GSPOConfig, ConversationEnvironment, RewardFunction; "
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")


@pytest.mark.long
def test_the_guides_script_runs_as_written(folders, tmp_path, capsys):
    model = str(folders["qwen3"])

    async def main():
        agent = MultiTurnAgent(AgentConfig(model_name=model, system_prompt="You help customers."))
        await agent.initialize()
        before = await agent.generate_response("hello")
        environment = ConversationEnvironment(**CONVERSATION_CONFIGS["customer_service"])
        reward = create_customer_service_reward()
        config = GSPOConfig.from_training_config(
            get_config_for_task("customer_service", model_name=model),
            num_outer_iterations=2,
            num_generations=2,
            generations_per_iteration=4,
            max_completion_length=8,
            learning_rate=0.1,
            overrides=["evaluation.problems=1", "evaluation.samples=0"],
            output_dir=tmp_path,
        )
        trained = await train_with_gspo(
            config=config, agent=agent, environment=environment, reward_model=reward
        )
        talk = [
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": "hi"},
            {"role": "user", "content": "where is my order 482?"},
        ]
        return before, trained, [await trained.generate_response(talk, seed=seed) for seed in (1, 1, 2)]

    before, agent, (answer, same, other) = asyncio.run(main())
    assert answer == same != other
    assert isinstance(before, str)
    assert agent.summary["status"] == "completed"
    assert agent.run_folder.parent.parent == tmp_path
    saved = OmegaConf.load(agent.run_folder / "config.yaml")
    assert saved.task.system_prompt == "You help customers."
    assert saved.model.label == "small"
    assert saved.reward == "python object gspo_cli.rewards.composition.WeightedReward"
    metrics = RunFolder(agent.run_folder).read("metrics.jsonl")
    assert "rewards/standing/outcome/mean" in metrics[-1]
    assert "iteration" in capsys.readouterr().out  # progress is shown
    agent.save(tmp_path / "saved")
    assert (tmp_path / "saved" / "adapter_config.json").exists()


@pytest.mark.long
def test_the_api_and_the_command_are_the_same_run(tmp_path, reporter):
    changes = {"num_outer_iterations": 2, "num_generations": 4, "generations_per_iteration": 8}
    agent = train(settings(tmp_path / "api", max_completion_length=12, **changes), reporter)
    done = gspo_train(*SMALL, "rollout.max_turns=8", f"hydra.run.dir={tmp_path / 'command'}")
    assert done.returncode == 0, done.stderr
    api, other = RunFolder(agent.run_folder), RunFolder(tmp_path / "command")
    assert api.config.read_text() == other.config.read_text()
    assert (api.path / "card.txt").read_text() == (other.path / "card.txt").read_text()
    for log in ("metrics.jsonl", "evals.jsonl", "samples.jsonl", "heldout.jsonl"):
        assert logged(api, log) == logged(other, log) != []


@pytest.mark.long
@pytest.mark.parametrize("reward", [Polite(), Brief()], ids=["a coroutine", "a plain method"])
def test_a_reward_of_ones_own_trains_and_is_written_down(reward, tmp_path, reporter):
    agent = train(settings(tmp_path, **quick()), reporter, reward)
    saved = OmegaConf.load(agent.run_folder / "config.yaml")
    assert saved.reward == f"python object {__name__}.{type(reward).__name__}"
    lines = RunFolder(agent.run_folder).read("metrics.jsonl")
    assert lines[0]["grad_norm"] > 0
    assert ("rewards/polite/mean" in lines[0]) == isinstance(reward, Polite)


def quick():
    return {"num_outer_iterations": 1, "num_generations": 2, "generations_per_iteration": 4,
            "max_completion_length": 6, "updates_per_rollout": 2}  # fmt: skip


@pytest.mark.long
def test_no_command_can_go_on_with_a_reward_that_a_script_gave(tmp_path, reporter):
    agent = train(settings(tmp_path, **quick()), reporter, Brief())
    done = gspo_train(f"resume={agent.run_folder}", "training.num_outer_iterations=2")
    assert done.returncode == 2
    [sentence] = done.stderr.splitlines()
    said = f"gspo-train: reward=python object {__name__}.Brief: was created by a script and cannot be rebuilt"
    assert sentence == f"{said}; rerun the script, or evaluate with reward=null, the task's own reward"
    assert [name for name, _ in next_commands(agent.summary)] == [
        f"gspo-eval {agent.run_folder} reward=null",
        f"gspo-chat {agent.run_folder}",
    ]
    done = call("gspo-eval", str(agent.run_folder), "reward=null", "--json")
    assert done.returncode == 0, done.stderr


def test_gspo_token_takes_credit_by_turns_and_gspo_does_not(tmp_path, reporter):
    config = settings(tmp_path, credit="turn", discount=0.9, **quick())
    agent = train(config, reporter, function=train_with_gspo_token)
    saved = OmegaConf.load(agent.run_folder / "config.yaml").algorithm
    assert (saved.name, saved.credit, saved.discount) == ("gspo_token", "turn", 0.9)
    assert agent.summary["status"] == "completed"
    with pytest.raises(UserError, match=r"^algorithm.credit=turn: a sequence ratio takes one advantage"):
        train(config, reporter)


@pytest.mark.long
def test_scenarios_given_inline_are_trained_on_and_kept_with_the_run(tmp_path, reporter):
    environment = ConversationEnvironment(scenarios=CARDS)
    assert len(environment.task().train_problems()) == 5
    assert len(environment.task().heldout_problems()) == 1
    conversation = environment.conversation()
    conversation.reset(environment.task().train_problems()[0], 0)
    assert conversation.step("i block your card.").done
    config = GSPOConfig.from_training_config(settings(tmp_path, **quick()), max_turns=2)
    agent = train(config, reporter, environment=environment)
    path = Path(OmegaConf.load(agent.run_folder / "config.yaml").task.path)
    assert path == agent.run_folder / "scenarios.json"
    assert json.loads(path.read_text()) == CARDS
    assert agent.summary["status"] == "completed"


def test_scenarios_without_goals_need_a_reward(tmp_path, reporter):
    lines = [
        {"id": str(n), "topic": "cards", "context": "a bank", "user_responses": ["hello.", f"card {n}?"]}
        for n in range(4)
    ]
    overrides = [*OVERRIDES, "model.cold_start.steps=0"]
    config = GSPOConfig.from_training_config(settings(tmp_path, **quick()), overrides=overrides)
    agent = train(config, reporter, Polite(), environment=ConversationEnvironment(scenarios=lines))
    assert RunFolder(agent.run_folder).read("metrics.jsonl")[0]["num_turns"] == 2


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: get_config_for_task("cooking"),
            "^task=cooking: is not an option; choose one of agent, arithmetic",
        ),
        (lambda: ConversationEnvironment(task="cooking").task(), "^task=cooking: is not an option"),
        (lambda: GSPOConfig.from_training_config(GSPOConfig(), clip_left=1), "GSPOConfig.clip_left: is not"),
        (
            lambda: GSPOConfig.from_training_config(GSPOConfig(), learning_rat=1),
            "did you mean learning_rate?",
        ),
        (lambda: GSPOConfig(overrides=["algorithm=grpo"]), "algorithm=grpo is not a single setting"),
        (lambda: GSPOConfig(overrides=["logging=wandb"]), "logging=wandb is not a single setting"),
        (lambda: AgentConfig(device="tpu"), "AgentConfig.device=tpu: give cpu, cuda, auto"),
        (
            lambda: ConversationEnvironment(task="sales", scenarios=CARDS),
            "^scenarios: only apply",
        ),
        (lambda: ConversationEnvironment().task(), "^task.path: is needed"),
        (lambda: ConversationEnvironment(scenarios=[{"id": object()}]).task(), "cannot be written as JSON"),
        (lambda: ConversationEnvironment(scenarios=[{"id": "x"}]).task(), "scenario 1"),
        (lambda: ConversationEnvironment(task="sales", colour=1).task(), "^task.colour: is not a setting of"),
        (lambda: ConversationEnvironment(task="sales", heldout=object()).task(), "^task.heldout="),
        (lambda: ConversationEnvironment(task="customer_service", difficulty=9).task(), "must be between 1"),
    ],
)
def test_what_is_no_setting_is_said_in_a_sentence(make, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"credit": "word"}, "^algorithm.credit=word: "),
        ({"use_4bit": True, "use_lora": False}, "^model.use_4bit=true: quantized weights are frozen"),
        ({"use_4bit": True, "use_8bit": True}, "^model.use_4bit, model.use_8bit: are both true"),
        ({"beta": "much"}, "^algorithm.beta=much: "),
        ({"temperature": -1.0}, "^rollout.temperature=-1.0: must be above 0"),
        ({"overrides": ["training.colour=red"]}, "^training.colour: is not a known setting"),
        ({"num_generations": 3}, "must be a multiple"),
    ],
)
def test_a_bad_setting_is_said_before_anything_is_made(changes, sentence, tmp_path, reporter):
    with pytest.raises(UserError, match=sentence):
        train(settings(tmp_path, **quick() | changes), reporter)
    assert list(tmp_path.iterdir()) == []


def test_a_reward_has_to_be_an_object(tmp_path, reporter):
    with pytest.raises(UserError, match=r"^reward_model: is a type; give an instance of"):
        train(settings(tmp_path, **quick()), reporter, Brief)


def test_a_system_prompt_over_the_prompt_cap_is_said(tmp_path, reporter):
    with pytest.raises(
        UserError, match=r"^rollout.max_prompt_length=64: all \d+ training problems are longer"
    ):
        train(settings(tmp_path, max_prompt_length=64, **quick()), reporter, system_prompt="be kind " * 100)


def test_an_agent_that_is_not_there_yet_says_how_to_get_it():
    agent = MultiTurnAgent(AgentConfig())
    asyncio.run(agent.initialize())
    with pytest.raises(UserError, match=r"^agent: tiny is not loaded; call"):
        asyncio.run(agent.generate_response("hello"))


def test_a_conversation_that_fills_the_model_is_said(folders):
    agent = MultiTurnAgent(AgentConfig(model_name=folders["gpt2"], max_new_tokens=4))
    asyncio.run(agent.initialize())
    assert isinstance(asyncio.run(agent.generate_response("hello")), str)
    with pytest.raises(UserError, match="fills the model's context; start a new one"):
        asyncio.run(agent.generate_response("x" * 600))


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ([], "there is no message to answer"),
        ([Message("assistant", "hi"), Message("user", "hello")], "the first message is from the assistant"),
        ([{"role": "assistant", "content": "hi"}], "the first message is from the assistant"),
        ([Message("user", "hello"), {"role": "user"}], "message 2 is not valid; give it a role"),
        ([{"content": "hello"}], "message 1 is not valid"),
        ([{"role": "customer", "content": "hello"}], "message 1 is not valid"),
        (["hello"], "message 1 is not valid"),
        ({"role": "user", "content": "hello"}, "message 1 is not valid"),
    ],
)
def test_what_is_no_conversation_is_said_in_a_sentence(messages, sentence, folders):
    agent = MultiTurnAgent(AgentConfig(model_name=folders["gpt2"], max_new_tokens=1))
    asyncio.run(agent.initialize())
    with pytest.raises(UserError, match=f"^agent: {sentence}") as error:
        asyncio.run(agent.generate_response(messages))
    assert "\n" not in str(error.value)


def test_a_reward_with_settings_is_named_on_the_command_line(tmp_path, reporter):
    named = [f"reward={__name__}.Polite", "training.num_outer_iterations=1", "training.updates_per_rollout=2"]
    folder = trained(tmp_path / "run", reporter, *named, "reward_settings={weight: 0.0}")
    assert folder.read("metrics.jsonl")[0]["rewards/polite/mean"] == 0
    assert OmegaConf.load(folder.config).reward_settings == {"weight": 0.0}


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["reward_settings={wieght: 1}"],
            r"^reward_settings.wieght: is not a setting of .*; its settings are weight",
        ),
        ([f"reward={__name__}.quick"], "must be a subclass of"),
        ([f"reward={__name__}.Nothing"], "cannot be imported"),
        (["reward=python object mine.Reward"], "was created by a script"),
    ],
)
def test_a_reward_that_cannot_be_made_is_said_in_a_sentence(overrides, sentence, tmp_path, reporter):
    with pytest.raises(UserError, match=sentence):
        trained(tmp_path / "run", reporter, f"reward={__name__}.Polite", *overrides)
    assert configured(f"reward={__name__}.Polite")
