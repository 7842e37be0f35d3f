"""What benchmark.py measures: an iteration of gspo-cli, and the same iteration of TRL's GRPOTrainer.

Both sides load one model folder, answer the same prompts, and return a record per iteration, with the useful
operations of scoring and update: those of unique tokens in each group, the same count for both sides."""

from __future__ import annotations

import random
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

VOCABULARY, END_ID = 2048, 2048  # the tokenizer's end token is an id that the model has no row for
LEARNING_RATE, CLIP_LEFT, CLIP_RIGHT = 1e-5, 3e-4, 4e-4
STAGES = ("rollout", "score", "update", "other")

Record = dict[str, float]


@dataclass(frozen=True)
class Workload:
    """An iteration of either side. Prompts have `prompt` tokens, from the fewest to the most. Answers have
    `longest` tokens, or about `mean` where lengths are drawn (else None). `shape` is that of random weights,
    None for SmolLM2 and the prompts of the shop, with policy and tools."""

    prompts: int
    answers: int
    updates: int
    prompt: tuple[int, int]
    longest: int
    mean: int | None
    shape: Mapping[str, int] | None

    @property
    def sequences(self) -> int:
        """Answers in an iteration."""
        return self.prompts * self.answers


HEADS = {"heads": 4, "key_value_heads": 2}
SHAPE = HEADS | {"hidden_size": 256, "layers": 4, "head_dim": 64, "intermediate_size": 768}
SMALL = HEADS | {"hidden_size": 32, "layers": 1, "head_dim": 8, "intermediate_size": 64}
WORKLOADS = {
    "fixed": Workload(16, 4, 4, (24, 40), 128, None, SHAPE),
    "geometric": Workload(16, 4, 4, (24, 40), 128, 32, SHAPE),
    "tools": Workload(4, 8, 2, (600, 600), 64, None, SHAPE),
    "smollm2": Workload(2, 8, 2, (600, 800), 32, None, None),
}
REAL = "HuggingFaceTB/SmolLM2-135M-Instruct"  # make smollm2 brings it
NEVER = "<reponame>"  # a token of SmolLM2 that ends no answer


def smoke(workload: Workload) -> Workload:
    """The same in tiny sizes."""
    mean, shape = workload.mean and 8, workload.shape and SMALL
    return replace(workload, prompts=4, answers=4, updates=2, longest=16, mean=mean, shape=shape)


def prompts(workload: Workload, count: int) -> list[list[dict[str, str]]]:
    """Messages: random words, of which one is one token and none ends an answer; or those of the shop."""
    if workload.shape is None:
        return shop_prompts(count)
    rng = random.Random(0)
    texts = [
        " ".join(f"w{rng.randrange(100, VOCABULARY)}" for _ in range(rng.randint(*workload.prompt)))
        for _ in range(count)
    ]
    return [[{"role": "user", "content": text}] for text in texts]


def shop_prompts(count: int) -> list[list[dict[str, str]]]:
    """What the agent of customer_service reads first: policy and tools, and a customer's wish."""
    from omegaconf import OmegaConf

    from gspo_cli.config.compose import CONF_DIR, build_task

    settings = {"instructions": True, "answer_length": 64}
    task = build_task(OmegaConf.merge(OmegaConf.load(CONF_DIR / "task" / "customer_service.yaml"), settings))
    system = {"role": "system", "content": task.system_prompt_and_tools().text}
    openings = [problem.messages for problem in task.train_problems()[:count]]
    return [[system, *({"role": m.role, "content": m.content} for m in opening)] for opening in openings]


def token_sum_reward(completion_ids: Sequence[int]) -> float:
    """Cheap, and different for nearly every answer, so that no group has zero variance."""
    return sum(completion_ids) % 101 / 100


def write_model(folder: Path, workload: Workload) -> None:
    """A model folder that both sides load; its generation config lists the tokens that end an answer."""
    if workload.shape is None:
        write_real_model(folder)
        return
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from gspo_cli.config.model_schema import Shape
    from gspo_cli.policy.embedded import build_model

    words = {"<pad>": 0} | {f"w{i}": i for i in range(1, VOCABULARY)} | {"<end>": END_ID}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>")
    fast.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    model = build_model(Shape(**workload.shape), VOCABULARY, seed=0)
    if workload.mean is not None:
        # nearly uniform at random weights: one id in `mean` ends an answer
        model.generation_config.eos_token_id = list(range(1, 1 + VOCABULARY // workload.mean))
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder)
    fast.save_pretrained(folder)


def write_real_model(folder: Path) -> None:
    """SmolLM2 in fp32, in which nothing ends an answer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from gspo_cli.user_cache import fetched_model

    source = fetched_model(REAL)
    if not (source / "config.json").is_file():
        sys.exit(f"{REAL} is not in {source}; run make smollm2, or leave this workload out with --workload")
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.eos_token = NEVER
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def run_ours(
    folder: Path, threads: int, iterations: int, workload: Workload, *settings: str
) -> tuple[list[Record], float]:
    """The body of `Trainer`'s iteration, without its log lines; `settings` are added to `overrides`.

    -> records, GB before the model is loaded"""
    import torch
    from benchmark_operations import operations_of_iteration
    from hydra import compose, initialize_config_dir

    from gspo_cli.config.compose import CONF_DIR, build_config, register
    from gspo_cli.policy.dimensions import dimensions
    from gspo_cli.policy.loading import load_policy
    from gspo_cli.randomness import generator
    from gspo_cli.rewards.base import RewardFunction
    from gspo_cli.rollout.prompts import Prompts
    from gspo_cli.rollout.transformers_engine import TransformersEngine
    from gspo_cli.training.collecting import Collector, ConversationRunner, ProblemOrder
    from gspo_cli.training.credit import trainable, with_advantages
    from gspo_cli.training.metrics import Clock
    from gspo_cli.types import Message, Problem, RewardResult

    class TokenSum(RewardFunction):
        def compute_reward(self, trajectory, turn, context):
            pairs = zip(trajectory.token_ids, trajectory.action_mask, strict=True)
            return RewardResult(token_sum_reward([token for token, sampled in pairs if sampled]))

    torch.set_num_threads(threads)
    register()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        chosen = [*overrides(folder, iterations, workload), *settings]
        config = build_config(compose("train", overrides=chosen))
    imported = peak_gb()
    policy = load_policy(config.model.name, config.model, config.hardware)
    openings = prompts(workload, workload.prompts * iterations)
    problems = [
        Problem(str(i), tuple(Message(m["role"], m["content"]) for m in opening))
        for i, opening in enumerate(openings)
    ]
    engine = TransformersEngine(policy, config.rollout.batch_size)
    runner = ConversationRunner(config, TokenSum(), engine, Prompts(policy.chat))
    collector = Collector(config, runner, ProblemOrder(problems, config.seed))
    updater = updater_of(config, policy, engine, problems, runner.prompts)
    records, cursor = [], 0
    for iteration in range(iterations):
        clock, started = Clock(), time.process_time()
        collected = collector.collect(iteration, cursor, clock)
        samples = trainable(collected.groups, config.algorithm)
        samples = with_advantages(
            samples, collected.groups, config.algorithm, config.rollout.max_completion_length
        )
        updater.run(samples, generator(config.seed, "minibatches", iteration), clock)
        cursor += collected.problems_drawn
        trained = [sample.num_actions for sample in samples]
        skipped = collected.metrics["frac_reward_zero_std"]
        measured = record(clock.seconds, clock.total, started, trained)
        groups = [[(t.token_ids, t.action_mask) for t in group] for group in collected.groups]
        counted = operations_of_iteration(dimensions(policy.model), groups, workload.updates)
        records.append(measured | counted | {"groups_skipped": skipped})
    return records, imported


def updater_of(config: Any, policy: Any, engine: Any, problems: Sequence[Any], prompts: Any) -> Any:
    """The updater of a run, as `run_training` sets it up: what is shared, and what the old policy is."""
    from gspo_cli.config.choices import OldLogprobs
    from gspo_cli.training.old_logprobs import choose
    from gspo_cli.training.preflight import noise_floor
    from gspo_cli.training.sharing import sharing
    from gspo_cli.training.strategy import OneProcess
    from gspo_cli.training.update import Updater

    strategy = OneProcess(policy, config)
    updater = Updater(policy, config, strategy, sharing(config, policy, strategy))
    if config.rollout.old_logprobs is OldLogprobs.auto:
        floor = noise_floor(config, policy, strategy, problems, prompts, updater.collator.sharing)
        taken, _ = choose(config, policy, engine, floor, problems, prompts)
        config.rollout = replace(config.rollout, old_logprobs=taken)
    return updater


def overrides(folder: Path, iterations: int, workload: Workload) -> list[str]:
    """What the benchmark changes of the shipped configuration."""
    return [
        "algorithm=gspo",
        "hardware=cpu",
        "task=arithmetic",  # single-turn, without a system prompt; its problems and reward are replaced
        f"model.name={folder}",
        f"rollout.max_prompt_length={workload.prompt[1]}",
        f"rollout.max_completion_length={workload.longest}",
        f"algorithm.learning_rate={LEARNING_RATE}",
        f"algorithm.clip_range_left={CLIP_LEFT}",
        f"algorithm.clip_range_right={CLIP_RIGHT}",
        f"training.num_generations={workload.answers}",
        f"training.generations_per_iteration={workload.sequences}",
        f"training.updates_per_rollout={workload.updates}",
        f"training.num_outer_iterations={iterations}",
    ]


def run_trl(folder: Path, threads: int, iterations: int, workload: Workload) -> tuple[list[Record], float]:
    """TRL's own loop, with its methods timed from outside. -> records, GB before the model is loaded"""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from gspo_cli.training.metrics import Clock

    torch.set_num_threads(threads)
    imported = peak_gb()
    state = {"clock": Clock(), "started": 0.0, "lengths": [], "skipped": 0.0, "answered": []}
    records = []

    def begin():
        state["clock"], state["started"] = Clock(), time.process_time()

    def reward(prompts, completions, completion_ids, **_):
        state["lengths"] = [len(ids) for ids in completion_ids]
        values = [token_sum_reward(ids) for ids in completion_ids]
        size = workload.answers
        groups = [values[i : i + size] for i in range(0, len(values), size)]
        state["skipped"] = sum(max(group) == min(group) for group in groups) / len(groups)
        state["answered"] = list(zip(prompts, completion_ids, strict=True))
        return values

    class IterationEnd(TrainerCallback):
        def on_train_begin(self, args, trainer_state, control, **_):
            begin()

        def on_step_end(self, args, trainer_state, control, **_):
            if trainer_state.global_step % workload.updates:
                return
            total, seconds = state["clock"].total, state["clock"].seconds
            seconds["update"] = total - seconds["prepare"]
            records.append(
                record(seconds, total, state["started"], state["lengths"])
                | trl_operations(trainer, state["answered"], workload)
                | {"groups_skipped": state["skipped"]}
            )
            begin()

    steps = workload.updates * iterations
    args = GRPOConfig(**trl_settings(workload), output_dir=str(folder / "trl"), max_steps=steps)
    asked = prompts(workload, workload.prompts * iterations)
    dataset = Dataset.from_list([{"prompt": messages} for messages in asked])
    trainer = GRPOTrainer(
        model=str(folder), reward_funcs=reward, args=args, train_dataset=dataset, callbacks=[IterationEnd()]
    )

    time_stages(trainer, lambda stage: state["clock"].timing(stage))
    trainer.train()
    return records, imported


def trl_operations(
    trainer: Any, answered: Sequence[tuple[Any, list[int]]], workload: Workload
) -> dict[str, float]:
    """Useful operations of TRL's iteration, from the messages and the tokens of all answers in order."""
    from benchmark_operations import operations_of_iteration

    from gspo_cli.policy.dimensions import dimensions

    sequences = []
    for messages, answer in answered:
        read = trainer.processing_class.apply_chat_template
        prompt = read(messages, add_generation_prompt=True, return_dict=False)
        sequences.append((prompt + answer, [False] * len(prompt) + [True] * len(answer)))
    size = workload.answers
    groups = [sequences[i : i + size] for i in range(0, len(sequences), size)]
    return operations_of_iteration(dimensions(trainer.model), groups, workload.updates)


def time_stages(trainer: Any, timing: Callable[[str], Any]) -> None:
    """Time the parts of TRL's iteration."""
    import torch

    time_method(trainer, "_prepare_inputs", lambda: timing("prepare"))
    time_method(trainer, "_generate", lambda: timing("rollout"))
    # under gradient the same method is the update's forward pass
    time_method(
        trainer,
        "_get_per_token_logps_and_entropies",
        lambda: nullcontext() if torch.is_grad_enabled() else timing("score"),
    )


def trl_settings(workload: Workload) -> dict[str, Any]:
    """GSPO as TRL documents it, with everything else as in `overrides` and our defaults."""
    return {
        "importance_sampling_level": "sequence",
        "loss_type": "grpo",
        "epsilon": CLIP_LEFT,
        "epsilon_high": CLIP_RIGHT,
        "beta": 0.0,
        "num_generations": workload.answers,
        "per_device_train_batch_size": workload.sequences // workload.updates,
        "steps_per_generation": workload.updates,
        "gradient_accumulation_steps": 1,
        "max_completion_length": workload.longest,
        "temperature": 1.0,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def time_method(owner: Any, name: str, block: Callable[[], Any]) -> None:
    """Run `owner.name` inside `block()` from now on."""
    method = getattr(owner, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        with block():
            return method(*args, **kwargs)

    setattr(owner, name, timed)


def record(seconds: dict[str, float], total: float, started: float, lengths: Sequence[int]) -> Record:
    """One iteration: seconds by stage and in all, processor seconds since `started`, tokens trained on."""
    known = {stage: seconds[stage] for stage in STAGES[:-1]}
    return {
        **known,
        "other": total - sum(known.values()),
        "iteration": total,
        "cpu": time.process_time() - started,
        "tokens": sum(lengths),
        "tokens_per_second": sum(lengths) / total,
        "mean_length": sum(lengths) / len(lengths),
    }


def peak_gb() -> float:
    """Highest memory of this process so far."""
    unit = 2**30 if sys.platform == "darwin" else 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
