"""The calls of the GSPO guide and its five blocks of settings, as they are printed there, with local models
in the place of gpt2: SmolLM2, and gpt2's shape with its 1,024 positions. Its script is in test_examples."""

from __future__ import annotations

import asyncio
import copy
import dataclasses

import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from gspo_cli import (
    CONVERSATION_CONFIGS,
    AgentConfig,
    ConversationEnvironment,
    GSPOConfig,
    MultiTurnAgent,
    RewardFunction,
    RewardResult,
    create_advanced_rl_orchestrator,
    create_customer_service_reward,
    create_domain_reward,
    get_config_for_task,
    train_with_gspo,
    train_with_gspo_token,
)
from gspo_cli.api.training import run_node
from gspo_cli.config.compose import build_config, load_saved, resolved_yaml
from gspo_cli.config.sizes import Sizes
from gspo_cli.errors import UserError
from gspo_cli.policy.chat import ChatFormat
from gspo_cli.rollout.prompts import Prompts
from gspo_cli.run.folder import RunFolder
from gspo_cli.run.identity import changed_settings, saved_settings
from gspo_cli.training.lengths import fitting, make_room_for_tools

pytestmark = pytest.mark.long

END = "<|endoftext|>"
SYSTEM = "You are a helpful customer service representative."
BLOCKS = {
    "essential": lambda: GSPOConfig(
        num_generations=4,
        clip_range_left=3e-4,
        clip_range_right=4e-4,
        beta=0.0,
        num_outer_iterations=100,
        generations_per_iteration=100,
        learning_rate=1e-5,
        use_lora=True,
        lora_r=16,
        lora_alpha=32,
        gradient_checkpointing=True,
        use_8bit=False,
        use_4bit=False,
        max_prompt_length=256,
        max_completion_length=256,
        temperature=0.7,
        top_p=0.9,
    ),
    "small": lambda: GSPOConfig(
        num_generations=4,
        clip_range_left=3e-4,
        clip_range_right=4e-4,
        learning_rate=1e-5,
        use_lora=True,
        lora_r=8,
    ),
    "large": lambda: GSPOConfig(
        num_generations=4,
        clip_range_left=2e-4,
        clip_range_right=3e-4,
        learning_rate=5e-6,
        use_lora=True,
        lora_r=16,
        gradient_checkpointing=True,
    ),
    "moe": lambda: GSPOConfig(
        num_generations=6,
        clip_range_left=2e-4,
        clip_range_right=3e-4,
        learning_rate=3e-6,
        use_lora=True,
        lora_r=32,
        gradient_checkpointing=True,
    ),
    "wandb": lambda: GSPOConfig(
        report_to="wandb",
        wandb_project="my-gspo-project",
        wandb_tags=["gspo", "customer-service"],
        run_name="gspo-exp-001",
    ),
}
SIZES = {"moe": Sizes(6, 96, 4)}  # of the others: 4, 100, 4


@pytest.fixture(scope="module")
def gpt2_1024(tmp_path_factory, smollm2):
    """gpt2's architecture with its 1,024 positions, small, and SmolLM2's tokenizer as a plain one of gpt2's
    kind: no chat template, <|endoftext|> for everything."""
    folder = tmp_path_factory.mktemp("gpt2")
    tokenizer = AutoTokenizer.from_pretrained(smollm2, bos_token=END, eos_token=END, pad_token=END)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    size = {"vocab_size": len(tokenizer), "n_embd": 32, "n_layer": 2, "n_head": 4}
    ends = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    GPT2LMHeadModel(GPT2Config(**size, **ends, n_positions=1024)).save_pretrained(folder)
    return folder


def parts(model) -> tuple[MultiTurnAgent, ConversationEnvironment]:
    agent = MultiTurnAgent(AgentConfig(model_name=str(model), system_prompt=SYSTEM))
    return agent, ConversationEnvironment(**CONVERSATION_CONFIGS["customer_service"])


def quick_start(model, **more) -> GSPOConfig:
    base_config = get_config_for_task("customer_service", model_name=str(model))
    printed = {
        "num_outer_iterations": 100,
        "num_generations": 4,
        "clip_range_left": 3e-4,
        "clip_range_right": 4e-4,
        "output_dir": "./outputs/gspo",
    }
    return GSPOConfig.from_training_config(base_config, **printed | more)


def built(settings, model):
    agent, environment = parts(model)
    node = run_node("gspo", settings, agent, environment)
    return build_config(node), node


@pytest.mark.parametrize("model", ["smollm2", "gpt2_1024"])
@pytest.mark.parametrize("name", ["quick start", *BLOCKS])
def test_a_block_of_the_guide_is_a_run(name, model, request):
    folder = request.getfixturevalue(model)
    settings = quick_start(folder) if name == "quick start" else BLOCKS[name]()
    config, node = built(settings, folder)
    training, rollout = config.training, config.rollout
    found = Sizes(training.num_generations, training.generations_per_iteration, training.updates_per_rollout)
    assert found == SIZES.get(name, Sizes(4, 100, 4))
    assert training.num_outer_iterations == 100
    positions = 1024 if model == "gpt2_1024" else 8192
    assert rollout.max_prompt_length + rollout.max_completion_length <= positions
    for given in settings.given & set(resolved(node)):
        assert resolved(node)[given] == getattr(settings, given), given


def resolved_plain(node) -> dict:
    return OmegaConf.to_container(OmegaConf.create(resolved_yaml(node)))


def resolved(node) -> dict:
    groups = OmegaConf.create(resolved_yaml(node))
    return {key: value for name in ("training", "algorithm", "model", "rollout", "logging")
            for key, value in groups[name].items()}  # fmt: skip


def test_the_essential_block_holds_the_prompts_of_its_task(smollm2, tmp_path):
    """The guide's 256 tokens hold its prompts; the tools that the task announces come on top."""
    config, node = built(BLOCKS["essential"](), smollm2)
    folder, warned = RunFolder(tmp_path / "run"), []
    folder.create(resolved_yaml(node))
    tokenizer, task = AutoTokenizer.from_pretrained(smollm2), config.task
    prompts = Prompts(ChatFormat(tokenizer, [2]), task.system_prompt_and_tools())
    problems = task.train_problems()[:50]
    make_room_for_tools(config, prompts, problems, 8192, folder, warned.append)
    assert fitting(problems, prompts, config, 8192, "training", warned.append) == problems
    raised = config.rollout.max_prompt_length
    assert raised == max(256, *(len(prompts.ids(problem.messages)) for problem in problems))
    note = f"={raised}: in place of 256, which holds the prompts but not the tools that the task announces"
    assert warned == ([f"rollout.max_prompt_length{note}"] if raised > 256 else [])
    assert build_config(load_saved(folder.config)).rollout == config.rollout
    assert changed_settings(saved_settings(folder.path), resolved_plain(node)) == []


FEW = ["evaluation.problems=1", "evaluation.samples=0", "rollout.max_turns=2", "hardware.threads=1"]
SHORT = {"num_outer_iterations": 1, "max_completion_length": 8, "overrides": FEW}


def trained(function, model, config, reward_model, **more):
    """The agent that the guide's call trains."""
    agent, environment = parts(model)
    call = function(config=config, agent=agent, environment=environment, reward_model=reward_model, **more)
    return asyncio.run(call)


def by(agent):
    return OmegaConf.load(agent.run_folder / "config.yaml")


def short_start(model, folder):
    return quick_start(model, output_dir=folder, generations_per_iteration=4, **SHORT)


def test_the_quick_start_trains_on_1024_positions(gpt2_1024, tmp_path, reporter):
    config, reward_model = short_start(gpt2_1024, tmp_path), create_customer_service_reward()
    agent = trained(train_with_gspo, gpt2_1024, config, reward_model, reporter=reporter)
    assert agent.summary["status"] == "completed"
    assert by(agent).rollout.max_prompt_length == 1024 - 8
    assert any("max_prompt_length=1016: in place of the default 2048" in note for note in by(agent).notes)


def test_the_same_setup_trains_the_token_variant(gpt2_1024, tmp_path, reporter):
    config, reward_model = short_start(gpt2_1024, tmp_path), create_customer_service_reward()
    agent = trained(train_with_gspo_token, gpt2_1024, config, reward_model, reporter=reporter)
    assert (agent.summary["status"], by(agent).algorithm.ratio_level) == ("completed", "sequence_token")
    assert by(agent).algorithm.clip_range_left == 3e-4


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_of_the_guide_trains(name, gpt2_1024, tmp_path, reporter, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name == "wandb":
        pytest.importorskip("wandb", reason="needs the extra wandb")
    few = [*FEW, "logging.wandb_mode=disabled"]
    changes = SHORT | {"generations_per_iteration": 12, "overrides": few}
    printed = BLOCKS[name]()
    config = GSPOConfig.from_training_config(printed, **changes)
    reward_model = create_customer_service_reward()
    agent = trained(train_with_gspo, gpt2_1024, config, reward_model, reporter=reporter)
    assert agent.summary["status"] == "completed"
    followed = {*changes, "max_prompt_length"}  # the last is raised for the tools that the task announces
    for given in printed.given & set(resolved(by(agent))) - followed:
        assert resolved(by(agent))[given] == getattr(printed, given), given


class CustomReward(RewardFunction):
    """A reward of the guide's form."""

    async def compute_reward(self, trajectory, turn, context):
        score = (len(turn.content) % 7) / 7
        parts = {"custom": score}
        return RewardResult(total_reward=score, component_rewards=parts, metadata={"details": "..."})


def test_a_custom_reward_of_the_guides_form_trains(gpt2_1024, tmp_path, reporter):
    config = short_start(gpt2_1024, tmp_path)
    agent = trained(train_with_gspo, gpt2_1024, config, CustomReward(), reporter=reporter)
    [line] = RunFolder(agent.run_folder).read("metrics.jsonl")
    assert line["rewards/custom/mean"] == pytest.approx(line["reward"])


def test_visible_gpus_that_are_not_there_are_refused_in_one_sentence(gpt2_1024, tmp_path, monkeypatch):
    """The guide names four GPUs in the script; a script trains on the first of them."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    config, _ = built(quick_start(gpt2_1024), gpt2_1024)
    assert config.hardware.device.value == "cuda"
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match=r"^hardware.device=cuda: torch .* finds none of the GPUs"):
            trained(train_with_gspo, gpt2_1024, short_start(gpt2_1024, tmp_path), None)
        assert list(tmp_path.iterdir()) == []


def test_the_orchestrator_of_the_guide_has_its_algorithms_and_trains(gpt2_1024, tmp_path, reporter):
    agent, environment = parts(gpt2_1024)
    orchestrator = create_advanced_rl_orchestrator(agent)
    assert "gspo" in orchestrator.algorithms
    given = {"environment": environment, "reward_model": create_customer_service_reward()}
    small = SHORT | {"generations_per_iteration": 4, "output_dir": tmp_path, "reporter": reporter}
    agent = asyncio.run(orchestrator.train("gspo", **given, **small))
    assert agent.summary["status"] == "completed"


SCRIPT = {
    "num_generations": 4,
    "clip_range_left": 3e-4,
    "clip_range_right": 4e-4,
    "generations_per_iteration": 20,
    "use_lora": True,
    "lora_r": 8,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "report_to": "none",
    "logging_steps": 1,
    "save_steps": 5,
    "use_gspo_token": False,
}


@pytest.mark.parametrize("task", ["customer_service", "technical_support", "sales"])
def test_the_settings_of_the_guides_script_train(task, gpt2_1024, tmp_path, reporter):
    environment = ConversationEnvironment(**CONVERSATION_CONFIGS[task].copy())
    assert len(environment.scenarios) > 100
    agent = MultiTurnAgent(AgentConfig(model_name=str(gpt2_1024), system_prompt=SYSTEM))
    base_config = get_config_for_task(task, model_name=str(gpt2_1024))
    config = GSPOConfig.from_training_config(base_config, output_dir=tmp_path, **SCRIPT)
    assert config.to_dict().items() >= SCRIPT.items()
    config = GSPOConfig.from_training_config(config, **SHORT)
    given = {"reward_model": create_domain_reward(task), "reporter": reporter}
    agent = asyncio.run(train_with_gspo(config, agent, environment, **given))
    assert (by(agent).checkpoint.every, by(agent).hardware.tokens_per_microbatch) == (5, 2 * 1024)
    answer = asyncio.run(agent.generate_response([{"role": "user", "content": "My order has not arrived."}]))
    assert isinstance(answer, str)


def test_settings_are_given_or_follow_those_that_are():
    follows = GSPOConfig(num_generations=6)
    assert follows.given == {"num_generations"}
    assert GSPOConfig(6).given == {"num_generations"}
    assert GSPOConfig().given == get_config_for_task("customer_service").given == set()
    base = GSPOConfig(generations_per_iteration=100)
    assert GSPOConfig.from_training_config(base, seed=1).given == {"generations_per_iteration", "seed"}
    assert copy.deepcopy(follows).given == follows.given
    changed = get_config_for_task("customer_service")
    changed.num_generations = 6
    assert changed.given == {"num_generations"}
    assert follows == dataclasses.replace(follows)


def test_given_sizes_that_contradict_are_refused_with_one_that_works(gpt2_1024):
    contradiction = GSPOConfig(num_generations=6, generations_per_iteration=100)
    with pytest.raises(UserError, match=r"; use training.generations_per_iteration=96$"):
        built(contradiction, gpt2_1024)
    base = get_config_for_task("customer_service", model_name=str(gpt2_1024))
    config, _ = built(GSPOConfig.from_training_config(base, num_generations=6), gpt2_1024)
    assert config.training.generations_per_iteration == 96
    given = GSPOConfig.from_training_config(contradiction, generations_per_iteration=96)
    assert built(given, gpt2_1024)[0].training.generations_per_iteration == 96
