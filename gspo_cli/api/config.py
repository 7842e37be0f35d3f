"""Settings of a run under the names of the GSPO guide, and how they become the configuration that runs.

This module makes no choices of its own: a `GSPOConfig` is a flat view of conf/, so that a script and
`gspo-train` with the same settings are the same run."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gspo_cli.api.awaiting import bordered
from gspo_cli.api.carried_over import CARRIED, carried, carried_sizes, check_carried, not_a_setting
from gspo_cli.config.checks import override_key, require
from gspo_cli.config.compose import build_config, composed, literal
from gspo_cli.config.sizes import Sizes, fitted_sizes
from gspo_cli.errors import UserError
from gspo_cli.sources import find_source

EMBEDDED = ("tiny", "tiny_moe")
FETCHED = "smollm2"  # the option of the model that `make smollm2` brings
# agent, environment and function choose these groups; another option would undo a GSPOConfig's settings
CHOSEN = ("task", "model", "algorithm", "rollout", "logging", "experiment", "resume")
BILLIONS = re.compile(r"(?<![A-Za-z0-9])(\d+(?:\.\d+)?)[bB](?![A-Za-z])")
EXPERTS = re.compile(r"-A\d+(?:\.\d+)?B|moe|\dx\d", flags=re.IGNORECASE)
EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts")

# where the settings of a GSPOConfig go in the configuration
KEYS = {
    name: f"{group}.{name}" if group else name
    for group, names in {
        "training": "num_generations generations_per_iteration num_outer_iterations updates_per_rollout",
        "algorithm": "clip_range_left clip_range_right beta credit discount learning_rate",
        "model": "use_lora lora_r lora_alpha use_8bit use_4bit gradient_checkpointing",
        "rollout": "temperature top_p max_prompt_length max_completion_length max_turns",
        "logging": "report_to wandb_project wandb_tags run_name",
        "": "seed",
    }.items()
    for name in names.split()
}
# where those that were not given go: as defaults, which follow the settings that were given
DEFAULTS = {
    name: f"model.presets.{name}"
    for name in (
        "num_generations",
        "generations_per_iteration",
        "num_outer_iterations",
        "updates_per_rollout",
    )
}
# None takes the task's defaults for these
OF_TASK = ("max_prompt_length", "max_completion_length", "max_turns")


@dataclass
class GSPOConfig:
    """What the GSPO guide calls its training configuration; the defaults are the guide's, for a model under a
    billion parameters. `get_config_for_task` gives those of a task and a model.

    `max_prompt_length`, `max_completion_length` (of one turn) and `max_turns` are the task's where None.
    The numbers of answers and updates that are not given follow those that are, as on the command line.
    `overrides` are further settings as on the command line, e.g. ["training.schedule=cosine"], and win;
    `output_dir` is where run folders are made. `use_8bit` or `use_4bit` quantizes frozen weights, under LoRA.

    The settings after `output_dir` are other names of TRL and the guide; None leaves them to the
    configuration. `num_iterations` is TRL's: passes over the answers of an iteration. `save_steps`,
    `eval_steps` and `warmup_steps` count iterations. Micro-batches have at most
    the tokens of `per_device_train_batch_size` longest answers with their prompts.
    `gradient_accumulation_steps` changes nothing. With `use_gspo_token`, `train_with_gspo` trains the token
    variant. Raises UserError on an unknown setting, on a value that has no counterpart here (`lora_dropout`
    above 0, `logging_steps` other than 1), and on overrides of a whole group."""

    num_generations: int = 4
    generations_per_iteration: int = 100
    num_outer_iterations: int = 100
    updates_per_rollout: int = 4
    clip_range_left: float = 3e-4
    clip_range_right: float = 4e-4
    beta: float = 0.0
    credit: str = "trajectory"
    discount: float = 1.0
    learning_rate: float = 1e-5
    use_lora: bool = True
    lora_r: int = 16
    lora_alpha: int = 32
    gradient_checkpointing: bool = True
    use_8bit: bool = False
    use_4bit: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    max_prompt_length: int | None = None
    max_completion_length: int | None = None
    max_turns: int | None = None
    report_to: str = "none"
    wandb_project: str = "gspo-cli"
    wandb_tags: Sequence[str] = ()
    run_name: str | None = None
    seed: int = 0
    overrides: Sequence[str] = ()
    output_dir: str | Path = "outputs"
    per_device_train_batch_size: int | None = None
    gradient_accumulation_steps: int | None = None
    num_iterations: int | None = None
    logging_steps: int | None = None
    save_steps: int | None = None
    save_total_limit: int | None = None
    eval_steps: int | None = None
    warmup_steps: int | None = None
    lr_scheduler_type: str | None = None
    max_grad_norm: float | None = None
    weight_decay: float | None = None
    top_k: int | None = None
    bf16: bool | None = None
    lora_dropout: float | None = None
    lora_target_modules: Sequence[str] | str | None = None
    use_gspo_token: bool | None = None

    @bordered
    def __new__(cls, *values: Any, **named: Any) -> GSPOConfig:
        """Remembers which settings are given: later they look like defaults of the same value."""
        known = [each.name for each in fields(cls)]
        for name in named:
            require(name in known, not_a_setting(name, known, KEYS | CARRIED))
        config = super().__new__(cls)
        config._given = frozenset([*(each.name for each in fields(cls)[: len(values)]), *named])
        return config

    def __post_init__(self) -> None:
        self._made = {name: getattr(self, name) for name in DEFAULTS}
        check_carried(vars(self))
        for text in self.overrides:
            require(
                override_key(text) not in CHOSEN,
                f"GSPOConfig.overrides: {text} is not a single setting; give single settings such as "
                "rollout.temperature=0.7; agent, environment and function choose the groups",
            )

    @classmethod
    @bordered
    def from_training_config(cls, base: GSPOConfig | Mapping[str, Any], **overrides: Any) -> GSPOConfig:
        """`base`, a GSPOConfig or what its `to_dict` returned, with other values. Raises UserError on an
        unknown setting."""
        usable = isinstance(base, GSPOConfig | Mapping)
        require(usable, f"from_training_config: base is a {type(base).__name__}; give a GSPOConfig or a dict")
        start = base if isinstance(base, GSPOConfig) else cls(**base)
        known = [each.name for each in fields(cls)]
        for name in overrides:
            require(name in known, not_a_setting(name, known, KEYS | CARRIED))
        return replace(start, **overrides)._with_given(start.given | overrides.keys())

    def to_dict(self) -> dict[str, Any]:
        """All settings by name as plain values, with the numbers of answers and updates that will run; those
        that are left to the task and the configuration are left out. `GSPOConfig(**config.to_dict())` trains
        the same."""
        wanted = Sizes(self.num_generations, self.generations_per_iteration, self.updates_per_rollout)
        given = {name: value for name, value in asdict(wanted).items() if name in self.given}
        values = vars(self) | asdict(fitted_sizes(given, wanted, processes=1))
        named = {each.name: values[each.name] for each in fields(self)}
        return {name: _plain(value) for name, value in named.items() if value is not None}

    @bordered
    def validate(self, task: str = "customer_service", model_name: str | Path = "tiny") -> list[str]:
        """What follows from the settings, in sentences: defaults that were adjusted to fit them, and what has
        no effect. Nothing is loaded or trained. Raises UserError on settings that cannot run together."""
        algorithm = "gspo_token" if self.use_gspo_token else "gspo"
        groups = [f"task={task}", *model_overrides(model_name), f"algorithm={algorithm}"]
        node = composed([*groups, *self.overrides])
        self.apply(node)
        self.apply_sizes(node)
        return build_config(node).notes

    @property
    def given(self) -> frozenset[str]:
        """Names of the settings that were given, or changed later; the others are defaults."""
        return self._given | {name for name, value in self._made.items() if getattr(self, name) != value}

    def _with_given(self, names: Collection[str]) -> GSPOConfig:
        """This configuration, with the settings `names` taken as given."""
        self._given = frozenset(names)
        return self

    def apply(self, node: DictConfig) -> None:
        """Write the settings into a composed configuration; settings named in `overrides` keep their
        overridden values.

        Raises UserError on a value of the wrong kind."""
        named = set(map(override_key, self.overrides))
        for name, key in KEYS.items():
            value = getattr(self, name)
            left_to_task = name in OF_TASK and value is None
            if key not in named and not left_to_task:
                write_setting(node, key if name in self.given else DEFAULTS.get(name, key), value)
        for key, value in carried(vars(self)).items():
            if key not in named:
                write_setting(node, key, value)

    def apply_sizes(self, node: DictConfig) -> None:
        """Write what follows the lengths of `node`, whose other settings are all written, and note it."""
        sizes, notes = carried_sizes(node, vars(self))
        for key, value in sizes.items():
            if key not in map(override_key, self.overrides):
                write_setting(node, key, value)
        if notes:
            write_setting(node, "notes", [*node.notes, *notes])

    @property
    def typed(self) -> list[str]:
        """The settings that were given, as the beginnings of overrides."""
        keys = KEYS | CARRIED
        return [*self.overrides, *(f"{keys[name]}=" for name in sorted(self.given) if name in keys)]


def _plain(value: Any) -> Any:
    """`value` as JSON has it."""
    if isinstance(value, Path):
        return str(value)
    return value if isinstance(value, str) or not isinstance(value, Sequence) else list(value)


@bordered
def get_config_for_task(task: str, model_name: str = "tiny", algorithm: str = "gspo") -> GSPOConfig:
    """The presets of a task and a model, as `gspo-train task=... model=...` would use them.

    `model_name` is tiny, tiny_moe, a hub id or a local folder. Raises UserError on an unknown task."""
    node = composed([f"task={task}", *model_overrides(model_name), f"algorithm={algorithm}"])
    resolved = OmegaConf.create(OmegaConf.to_container(node, resolve=True, enum_to_str=True))
    own = {name: key for name, key in KEYS.items() if name not in OF_TASK}
    values = {name: OmegaConf.select(resolved, key) for name, key in own.items()}
    return GSPOConfig(**values)._with_given(())


def write_setting(node: DictConfig, key: str, value: Any) -> None:
    """Set `key` to `value`; strings are taken literally. Raises UserError if the value has the wrong type."""
    plain = str(value) if isinstance(value, Path) else literal(value)
    try:
        OmegaConf.update(node, key, plain, force_add=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{key}={value}: {str(error).splitlines()[0]}") from error


def model_overrides(name: str | Path) -> list[str]:
    """The model group that suits `name`, and the name. The size comes from the config.json of the folder (or
    of an adapter's base), or from the name itself (Qwen3-4B, Qwen3-30B-A3B); a model of unknown size counts
    as small. Raises UserError if `name` names no model."""
    name = str(name)
    if name in (*EMBEDDED, FETCHED):
        return [f"model={name}"]
    base = Path(find_source(name).base)
    described = base / "config.json"
    group = _group_of_folder(described) if described.is_file() else _group_of_name(base.name)
    return [f"model={group}", f"model.name={json.dumps(name, ensure_ascii=False)}"]


def _group_of_name(name: str) -> str:
    if EXPERTS.search(name):
        return "moe"
    sizes = [float(size) for size in BILLIONS.findall(name)]
    return "large" if sizes and max(sizes) >= 1 else "small"


def _group_of_folder(described: Path) -> str:
    try:
        read = json.loads(described.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{described}: is not JSON ({error}); restore the file") from error
    if not isinstance(read, dict):
        raise UserError(f"{described}: does not describe a model (it is not a JSON object); restore the file")
    inner = read.get("text_config")  # where a multimodal model keeps its language model
    shape = {**read, **inner} if isinstance(inner, dict) else read
    if any(shape.get(key) for key in EXPERT_KEYS):
        return "moe"
    width, layers, words = (
        next((shape[key] for key in keys if isinstance(shape.get(key), int)), 0)
        for keys in (("hidden_size", "n_embd"), ("num_hidden_layers", "n_layer"), ("vocab_size",))
    )
    # the usual estimate of a transformer's parameter count
    weights = 12 * layers * width**2 + words * width
    return "large" if weights >= 1e9 else "small"
