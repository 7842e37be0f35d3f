"""The model before reinforcement learning: loaded, or built here; and supervised fine-tuning on
demonstrations.

The paper starts from a cold-start model too (section 5.1). The result is an ordinary model folder, so that
everything after loads it like any other; under LoRA the adapter is merged first, and training adds a fresh
one."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import SafetensorError

from gspo_cli.agents.task import host_of
from gspo_cli.config.model_schema import ColdStart
from gspo_cli.config.schema import RunConfig
from gspo_cli.config.typed import override
from gspo_cli.errors import UserError
from gspo_cli.manifest import damage, write_manifest
from gspo_cli.policy.embedded import write_embedded
from gspo_cli.policy.loading import load_policy
from gspo_cli.policy.policy import Policy
from gspo_cli.policy.weights import merged
from gspo_cli.randomness import generator
from gspo_cli.rewards.base import build
from gspo_cli.rollout.prompts import Prompts
from gspo_cli.rollout.transformers_engine import TransformersEngine
from gspo_cli.run.files import folder_written_whole, remove_leftovers
from gspo_cli.sources import ModelSource, find_source, require_whole_start
from gspo_cli.tasks.files import read_demonstrations
from gspo_cli.tasks.levels import Level
from gspo_cli.training.batch import Sample, collate, split_by_tokens
from gspo_cli.training.collecting import ConversationRunner
from gspo_cli.training.evaluation import Evaluator
from gspo_cli.types import AgentTurn, Demonstration, FinishReason, Problem, Trajectory
from gspo_cli.user_cache import cache_folder, one_at_a_time

Progress = Callable[[str, int, int, str], None]
MAX_GRAD_NORM = 1.0
BETAS = (0.9, 0.95)  # of AdamW: with 0.999, copying, which conversations need often, is learned far later
# settings of the rollout that decide what competence is measured, and with it when a cold start ends
OF_ROLLOUT = ("temperature", "top_p", "top_k", "max_prompt_length", "max_completion_length", "max_turns")
# Competence is measured on this many training problems, at most once in this many steps, and only after
# training on this many times the tokens of the last measurement, because a model that rambles makes it slow.
SCORE_PROBLEMS, SCORE_EVERY, TRAINED_PER_SCORED = 100, 10, 3


def prepare_model(
    config: RunConfig, levels: Sequence[Level], initial_model: Path, progress: Progress
) -> ModelSource:
    """Where to load the model from: what `model.name` names, or `initial_model` where it is built or
    cold-started here.

    Of several `levels` the first is demonstrated; an embedded model knows the words of all. The result of a
    cold start is cached by everything it depends on. Raises UserError without demonstrations."""
    model = config.model
    built = ModelSource(str(initial_model.absolute()))
    if initial_model.exists():
        require_whole_start(initial_model)
        return built
    source = built if model.is_embedded else find_source(model.name, model.base)
    if not model.is_embedded and model.cold_start.steps == 0:
        return source
    demonstrations = _demonstrations(config, levels[0])
    problems = [problem for level in levels for problem in level.train[:2000]]
    spoken = [*demonstrations, *(shown for level in levels[1:] for shown in level.demonstrations())]
    texts = [m.content for d in spoken for m in d.messages]
    texts += [m.content for problem in problems for m in problem.messages]
    cached = cache_folder("cold_start") / _content_key(config, source, spoken, problems)
    steps, caches = model.cold_start.steps, model.cold_start.cache
    alone = one_at_a_time(cached, lambda: progress("cold start", 0, steps, "another run trains the same one"))
    with alone if caches else nullcontext(), _written(initial_model) as folder:
        if caches:
            remove_leftovers(cached.parent, f"{cached.name}-")
            _remove_damaged(cached, lambda note: progress("cold start", 0, steps, note))
        if caches and cached.exists():
            progress("cold start", steps, steps, "cached")
            shutil.copytree(cached, folder, dirs_exist_ok=True)
            write_manifest(folder)
            return built
        if model.is_embedded:
            write_embedded(folder, model.shape, model.init_seed, texts)
        if steps:
            _cold_start(config, levels[0], folder, demonstrations, progress)
        write_manifest(folder)
        if caches:
            _store(folder, cached, progress)
    return built


def encode_demonstration(prompts: Prompts, demonstration: Demonstration) -> Trajectory:
    """A demonstration as the trajectory that the policy would have produced with the same words."""
    messages = prompts.messages(demonstration.messages)
    shift = len(messages) - len(demonstration.messages)  # a system message in front
    pieces = list(prompts.pieces(messages, demonstration.given + shift))
    if pieces and not pieces[-1][1]:
        pieces.pop()  # what nobody answers
    ids = [token for piece, _ in pieces for token in piece]
    mask = [trained for piece, trained in pieces for _ in piece]
    turn_ids = [0 if trained else -1 for trained in mask]
    problem = Problem("demonstration", messages)
    return Trajectory(problem, ids, mask, [0.0] * len(ids), turn_ids, list(messages), FinishReason.stop)


def fine_tune(
    policy: Policy,
    trajectories: Sequence[Trajectory],
    cold: ColdStart,
    token_budget: int,
    progress: Progress,
    score: Callable[[], tuple[float, int]],
) -> None:
    """Minimize the mean negative log-probability of demonstrated tokens; the learning rate falls linearly to
    a tenth.

    Ends early once `score`, called occasionally for competence and the number of tokens that measuring it
    took, reaches `cold.stop_score`."""
    optimizer = torch.optim.AdamW(policy.trainable(), cold.learning_rate, BETAS, weight_decay=0.0)
    mean_length = sum(len(t.token_ids) for t in trajectories) / len(trajectories)
    rows = max(1, round(cold.batch_tokens / mean_length))
    trained, due = 0, 0  # tokens since the last measurement, and before the next
    for step in range(cold.steps):
        chosen = generator(cold.seed, "cold start", step).integers(len(trajectories), size=rows)
        samples = [Sample.of(trajectories[i]) for i in chosen]
        tokens = sum(s.num_actions for s in samples)
        total = 0.0
        with policy.updating():
            for part in split_by_tokens(samples, token_budget):
                batch = collate(part, policy.chat.pad_id, policy.device)
                loss = -policy(batch.token_ids, batch.action_mask, 1.0)[0].sum() / tokens
                loss.backward()
                total += loss.item()
        if not torch.nn.utils.clip_grad_norm_(policy.trainable(), MAX_GRAD_NORM).isfinite():
            raise UserError(
                f"model.cold_start.learning_rate={cold.learning_rate:g}: the gradient is no longer "
                f"finite after {step} steps; lower it"
            )
        for group in optimizer.param_groups:
            group["lr"] = cold.learning_rate * (1 - 0.9 * step / cold.steps)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        progress("cold start", step + 1, cold.steps, f"loss {total:.3f}")
        trained += sum(s.length for s in samples)
        if cold.stop_score is None or (step + 1) % SCORE_EVERY or trained < due:
            continue
        reached, measured = score()
        trained, due = 0, TRAINED_PER_SCORED * measured
        if reached >= cold.stop_score:
            progress("cold start", cold.steps, cold.steps, f"{reached:.0%} solved after {step + 1} steps")
            return


def _cold_start(
    config: RunConfig, level: Level, folder: Path, demonstrations: Sequence[Demonstration], progress: Progress
) -> None:
    task = level.task
    # in full precision regardless of training, because the adapter is merged
    model = config.model.whole() if config.model.is_embedded else config.model.unquantized()
    policy = load_policy(str(folder) if model.is_embedded else model.name, model, config.hardware)
    prompts = Prompts(policy.chat, task.system_prompt_and_tools())
    trajectories = [encode_demonstration(prompts, demonstration) for demonstration in demonstrations]
    fitting = [t for t in trajectories if len(t.token_ids) <= policy.max_positions]
    if not fitting:
        raise UserError(
            "model.cold_start.demonstrations: all demonstrations are longer than the model's context; "
            "shorten them"
        )
    engine = TransformersEngine(policy, config.rollout.batch_size)
    problems = level.train[:SCORE_PROBLEMS]

    def scoring(done: int, total: int, note: str) -> None:
        if done < total:  # the end of a stage would end the view of the cold start
            progress("scoring", done, total, note)

    with host_of(task, engine, policy.chat) or nullcontext() as agents:
        given = config.reward if task.runs_agent else None  # an agent may return none itself
        reward = task.scored_by(None if given is None else build(given, config.reward_settings or {}))
        runner = ConversationRunner(config, reward, engine, prompts, agents=agents)
        score = partial(Evaluator(config, runner).sampled_score, problems, scoring)
        fine_tune(policy, fitting, model.cold_start, config.hardware.tokens_per_microbatch, progress, score)
    if policy.has_adapter:
        policy.model = merged(policy.model)
    policy.save(folder)


def _demonstrations(config: RunConfig, level: Level) -> Sequence[Demonstration]:
    cold = config.model.cold_start
    if cold.demonstrations is not None:
        return read_demonstrations(cold.demonstrations)
    demonstrations = level.demonstrations()
    if cold.steps and not demonstrations:
        raise UserError(
            f"model.cold_start.steps={cold.steps}: task={level.task.name} has no demonstrations; give a "
            "JSONL file in model.cold_start.demonstrations, or set model.cold_start.steps=0"
        )
    return demonstrations


@contextmanager
def _written(model: Path) -> Iterator[Path]:
    """`folder_written_whole` that raises UserError where the disk does not take a model."""
    try:
        with folder_written_whole(model) as folder:
            yield folder
    except (OSError, SafetensorError) as error:
        # the cause is an OSError in both cases, by which the run's folder is kept
        cause = error if isinstance(error, OSError) else OSError(str(error))
        raise UserError(
            f"{model}: cannot be saved ({' '.join(str(error).split())}); free space, then continue with "
            f"gspo-train {override('resume', model.parent)}"
        ) from cause


def _remove_damaged(cached: Path, note: Callable[[str], None]) -> None:
    """Remove a cached cold start that is not as it was stored: it is trained anew."""
    if not cached.exists() or (what := damage(cached, resumes=False)) is None:
        return
    note(f"{cached} is damaged ({what}); it is trained anew")
    if cached.is_dir() and not cached.is_symlink():
        shutil.rmtree(cached)
    else:
        cached.unlink()


def _store(model: Path, cached: Path, progress: Progress) -> None:
    """Cache a finished cold start for later runs; if the disk is full, the run continues without a cache."""
    try:
        with folder_written_whole(cached) as folder:
            shutil.copytree(model, folder, dirs_exist_ok=True)
    except OSError as error:
        progress("cold start", 1, 1, f"not cached in {cached.parent} ({error.strerror})")


def _content_key(
    config: RunConfig,
    source: ModelSource,
    demonstrations: Sequence[Demonstration],
    problems: Sequence[Problem],
) -> str:
    """Hash of everything that the result depends on."""
    model = config.model
    weights: list[Path] = []
    for place in (Path(source.base), source.adapter):
        if place is not None and not model.is_embedded:
            weights += [place] if place.is_file() else sorted(place.glob("*"))
    spoken = [message for demonstration in demonstrations for message in demonstration.messages]
    parts = {
        "name": model.name if source.adapter is None else list(map(str, source)),
        "files": [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in weights],
        "shape": asdict(model.shape),
        "cold_start": asdict(model.cold_start),
        "lora": [model.use_lora, model.lora_r, model.lora_alpha, model.lora_target_modules, model.init_seed],
        "lora_experts": model.lora_experts,
        "freeze_router": model.freeze_router,
        "precision": config.hardware.precision.value,
        "task": asdict(config.task),
        "rollout": {name: getattr(config.rollout, name) for name in OF_ROLLOUT},
        "versions": [torch.__version__, version("transformers")],
        "demonstrations": [asdict(demonstration) for demonstration in demonstrations],
        "reasoning": [m.content.reasoning for m in spoken if isinstance(m.content, AgentTurn)],
        "problems": [(problem.answer, [asdict(m) for m in problem.messages]) for problem in problems],
    }
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:32]
