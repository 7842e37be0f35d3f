"""Every option composes, presets are the guide's, what is saved is what ran, bad input gets one sentence."""

from __future__ import annotations

import ast
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import get_type_hints

import pytest
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gspo_cli.config.compose import CONF_DIR, build_config, explain, load_saved, locate, resolved_yaml
from gspo_cli.config.schema import RunConfig
from gspo_cli.config.sizes import Sizes
from gspo_cli.config.training_schema import TrainingConfig
from gspo_cli.errors import UserError
from tests.support.configs import composed, composed_from_parts

ROOT = Path(__file__).resolve().parent.parent


FILE_TASKS = ("agent", "dataset", "gsm8k", "jsonl", "scenarios", "tau_retail", "tau2")


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml"))


def task(name: str) -> list[str]:
    """Overrides that choose a task; those over a file need one."""
    file = ["task.path=lines.jsonl"] if name in FILE_TASKS else []
    return [f"task={name}", *file, *(["task.agent=mine:run"] if name == "agent" else [])]


@cache
def built(*overrides: str) -> RunConfig:
    return build_config(composed(*overrides))


def sentence(*overrides: str) -> str:
    """What the user reads about overrides that cannot be run."""
    with pytest.raises((UserError, HydraException, OmegaConfBaseException)) as caught:
        built(*overrides)
    return str(caught.value) if caught.errisinstance(UserError) else explain(caught.value)


# Every option composes


@pytest.mark.long
@pytest.mark.parametrize("model", options("model"))
def test_every_algorithm_composes_with_every_model(model):
    for name in options("algorithm"):
        config = built(f"model={model}", f"algorithm={name}")
        assert (config.model.label, config.algorithm.name) == (model, name)


@pytest.mark.long
@pytest.mark.parametrize("group", ["hardware", "rollout", "logging", "experiment"])
def test_every_option_of_the_other_groups_composes(group):
    assert options(group) != []
    for option in options(group):
        assert isinstance(built(f"{group}={option}"), RunConfig)


@pytest.mark.parametrize("name", options("task"))
def test_every_task_composes_into_its_own_object(name):
    node = composed(*task(name))
    found = build_config(node).task
    assert found.name == name
    assert type(found) is locate(node.task._target_, "task._target_")


def test_the_options_are_the_promised_ones():
    assert {"tiny", "tiny_moe", "small", "large", "moe"} <= set(options("model"))
    published = {"gspo", "gspo_token", "grpo", "dr_grpo", "dapo", "cispo", "rloo", "sapo", "gmpo", "luspo"}
    published |= {"rloo_token", "reinforce_pp"}
    assert published <= set(options("algorithm"))
    assert {"cpu", "single_gpu"} <= set(options("hardware"))
    assert {"none", "wandb", "tensorboard"} <= set(options("logging"))


def test_an_experiment_has_the_last_word_but_one():
    smoke = OmegaConf.load(CONF_DIR / "experiment" / "smoke.yaml")
    assert built("experiment=smoke").training.num_outer_iterations == smoke.training.num_outer_iterations
    assert built("experiment=smoke", "training.num_outer_iterations=7").training.num_outer_iterations == 7


def test_an_experiment_holds_overrides_of_known_keys_only():
    for name in options("experiment"):
        text = (CONF_DIR / "experiment" / f"{name}.yaml").read_text()
        assert text.startswith("# @package _global_\n")
        sweeps = "\n    params:\n" in text  # over what it is about; one run of it may be the default's
        assert sweeps or built(f"experiment={name}") != built()


def test_the_grpo_baseline_differs_from_the_default_by_the_algorithm_alone():
    assert built("experiment=grpo_baseline") == built("algorithm=grpo")


# Presets: spec section 2


@pytest.mark.parametrize(
    ("model", "generations", "left", "right", "rate", "lora_r"),
    [
        ("small", 4, 3e-4, 4e-4, 1e-5, 8),
        ("large", 4, 2e-4, 3e-4, 5e-6, 16),
        ("moe", 6, 2e-4, 3e-4, 3e-6, 32),
    ],
)
@pytest.mark.parametrize("algorithm", ["gspo", "gspo_token"])
def test_sequence_ratios_take_the_guides_row_of_the_model(
    model, generations, left, right, rate, lora_r, algorithm
):
    config = built(f"model={model}", f"algorithm={algorithm}")
    assert config.training.num_generations == generations
    assert (config.algorithm.clip_range_left, config.algorithm.clip_range_right) == (left, right)
    assert config.algorithm.learning_rate == rate
    assert config.model.use_lora
    assert config.model.lora_r == lora_r


@pytest.mark.parametrize(("model", "rate"), [("small", 1e-5), ("large", 5e-6), ("moe", 3e-6)])
def test_grpo_takes_the_papers_widths_and_the_models_rate(model, rate):
    algorithm = built(f"model={model}", "algorithm=grpo").algorithm
    assert (algorithm.clip_range_left, algorithm.clip_range_right) == (0.2, 0.27)
    assert algorithm.learning_rate == rate


@pytest.mark.long
@pytest.mark.parametrize("model", options("model"))
def test_no_token_ratio_ever_inherits_a_sequence_width(model):
    for name in options("algorithm"):
        algorithm = built(f"model={model}", f"algorithm={name}").algorithm
        widths = [w for w in (algorithm.clip_range_left, algorithm.clip_range_right) if w is not None]
        if not algorithm.compares_means:
            assert all(width >= 0.2 for width in widths), name
        else:
            assert all(width <= 4e-4 for width in widths), name


@pytest.mark.parametrize("model", ["small", "large", "moe"])
def test_what_the_guide_prints_is_the_default(model):
    config = built(f"model={model}", *task("jsonl"))
    assert config.training.num_outer_iterations == 100
    assert config.training.generations_per_iteration == (96 if model == "moe" else 100)  # 100 is no 6 x n
    assert config.training.updates_per_rollout == 4
    assert config.algorithm.beta == 0.0
    assert (config.model.use_lora, config.model.lora_alpha) == (True, 32)
    assert (config.rollout.temperature, config.rollout.top_p, config.rollout.top_k) == (1.0, 1.0, 0)
    assert (config.rollout.max_prompt_length, config.rollout.max_completion_length) == (256, 256)


@pytest.mark.parametrize("name", options("task"))
def test_the_task_says_how_long_answers_are_unless_the_user_does(name):
    config = built(*task(name))
    assert config.rollout.max_completion_length == config.task.answer_length
    config = built(*task(name), "rollout.max_completion_length=77")
    assert config.rollout.max_completion_length == 77


def test_nothing_has_to_be_given():
    config = built()
    chosen = (config.model.label, config.task.name, config.algorithm.name)
    assert chosen == ("tiny", "customer_service", "gspo")


def test_a_first_run_is_short_and_evaluated_on_its_way():
    training, evaluation = built().training, built().evaluation
    assert training.num_outer_iterations <= 15
    assert training.num_outer_iterations % evaluation.every == 0
    assert training.num_outer_iterations > evaluation.every
    assert TrainingConfig.num_outer_iterations == 100


# Bad input: one sentence that names the key and the fix

SENTENCES = [
    # unknown keys, with the nearest known one
    ("training.num_generation=4", "is not a known setting; did you mean training.num_generations?"),
    ("modle=tiny", "modle: is not a known setting; did you mean model?"),
    ("foo=1", "foo: is not a known setting; `gspo-train --cfg job` shows them all"),
    ("+foo=1", "foo: is not a known setting"),
    ("++training.foo=1", "training.foo: is not a known setting"),
    ("task.dificulty=3", "task.dificulty: is not a"),
    ("+task.dificulty=3", "task.dificulty: is not a setting of gspo_cli.tasks.customer_service.Customer"),
    # unknown options and enum names, with the known ones
    ("model=huge", "model=huge: is not an option; choose one of large, moe, small, smollm2, tiny"),
    ("experiment=nope", "experiment=nope: is not an option; choose one of"),
    ("algorithm.ratio_level=word", "algorithm.ratio_level=word: choose one of token, "),
    ("hardware.device=tpu", "hardware.device=tpu: choose one of cpu, cuda"),
    # wrong types
    ("seed=abc", "seed=abc: give a whole number"),
    ("seed=1.5", "seed=1.5: give a whole number"),
    ("seed=[1,2]", "seed=[1, 2]: give a whole number"),
    ("seed=null", "seed=null: give a whole number"),
    ("training=5", "training: is a section: give single settings, as in training.num_outer_iterations=..."),
    ("algorithm.learning_rate=", "algorithm.learning_rate=: give a number"),
    ("task.difficulty=two", "task.difficulty=two: give a whole number"),
    ("foo", "foo: is not an override; write key=value"),
    # out of range
    ("seed=-1", "seed=-1: must be 0 or more"),
    ("training.num_outer_iterations=0", "training.num_outer_iterations=0: must be above 0"),
    ("algorithm.learning_rate=nan", "algorithm.learning_rate=nan: must be above 0"),
    ("algorithm.learning_rate=inf", "algorithm.learning_rate=inf: must be above 0 and at most 1e+09; give"),
    ("algorithm.clip_range_left=0", "algorithm.clip_range_left=0.0: is a width around 1 and must be above 0"),
    ("algorithm.beta=-0.1", "algorithm.beta=-0.1: must be 0 or more"),
    ("algorithm.credit=turn", "algorithm.credit=turn: a sequence ratio takes one advantage for the whole"),
    ("algorithm.discount=0.5", "algorithm.discount=0.5: only applies to credit by turns; use algorithm"),
    ("algorithm.discount=0", "algorithm.discount=0.0: must be above 0 and at most 1"),
    ("algorithm.discount=1.1", "algorithm.discount=1.1: must be above 0 and at most 1"),
    ("training.reward_timeout=0", "training.reward_timeout=0.0: must be above 0"),
    ("rollout.environment_concurrency=0", "rollout.environment_concurrency=0: must be above 0"),
    ("reward_settings={a:1}", "reward_settings: only applies with reward=<dotted path>"),
    ("rollout.temperature=0", "rollout.temperature=0.0: must be above 0"),
    ("rollout.top_p=2", "rollout.top_p=2.0: must be between 0 and 1"),
    ("rollout.top_k=-1", "rollout.top_k=-1: must be 0 or more"),
    ("model.lora_r=0", "model.lora_r=0: must be above 0"),
    ("model.init_seed=99999999999999999999", "model.init_seed=99999999999999999999: must be between"),
    ("model.cold_start.seed=-1", "model.cold_start.seed=-1: must be 0 or more"),
    ("model.cold_start.stop_score=nan", "model.cold_start.stop_score=nan: must be between 0 and 1"),
    ("model.shape.head_dim=3", "model.shape.head_dim=3: must be even"),
    ("model.shape.vocabulary=256", "model.shape.vocabulary=256: must be at least 300, for bytes and "
    "special tokens"),
    ("training.adam_beta1=1", "training.adam_beta1=1.0: must be 0 or more, and below 1"),
    ("hardware.threads=9999999999", "hardware.threads=9999999999: must be between 1 and 4096"),
    ("hardware.zero_stage=4", "hardware.zero_stage=4: must be 0, 1, 2 or 3"),
    ("hardware.processes=0", "hardware.processes=0: must be above 0; give null for one per visible GPU"),
    ("hardware.nodes=0", "hardware.nodes=0: must be above 0"),
    ("evaluation.samples=-1", "evaluation.samples=-1: must be 0 or more"),
    ("evaluation.stop_at_score=5", "evaluation.stop_at_score=5.0: must be between 0 and 1"),
    ("checkpoint.keep=0", "checkpoint.keep=0: must be above 0"),
    ("task.difficulty=0", "task.difficulty=0: must be between 1 and 4"),
    # names of other trainers and of other groups
    ("learning_rate=1e-6", "learning_rate: is not a known setting; did you mean algorithm.learning_rate"),
    ("training.learning_rate=1e-6", "did you mean algorithm.learning_rate"),
    ("beta=0.1", "did you mean algorithm.beta?"),
    ("training.num_iterations=4", "training.passes sets that here"),
    ("per_device_train_batch_size=4", "hardware.tokens_per_microbatch sets that here"),
    ("gradient_accumulation_steps=4", "hardware.tokens_per_microbatch sets that here"),
    ("algorithm.epsilon_high=4e-4", "algorithm.clip_range_right sets that here"),
    ("loss_type=grpo", "algorithm.aggregation sets that here"),
    ("training.max_steps=5", "training.num_outer_iterations sets that here"),
    # far outside of any use
    ("algorithm.learning_rate=1e30", "algorithm.learning_rate=1e+30: "),
    ("algorithm.learning_rate=2", "algorithm.learning_rate=2.0: is far too large; give at most 1"),
    ("rollout.temperature=1e30", "rollout.temperature=1e+30: "),
    ("rollout.temperature=1000", "rollout.temperature=1000.0: is far too large; give at most 100, such as 1"),
    ("evaluation.problems=100000000000", "evaluation.problems=100000000000: must be"),
    ("model.lora_target_modules=[1,2]", "model.lora_target_modules: 1 is no module's name"),
    ("model.name=", "model.name: is empty"),
    ("training.optimizer=1e30", "training.optimizer=1e+30: choose one of adamw, "),
    # illegal together
    ("training.num_generations=1", "training.num_generations=1: an advantage compares an answer with"),
    ("training.generations_per_iteration=97", "=97: must be a multiple of training.num_generations=8 and of"),
    ("algorithm.aggregation=token_mean", "a sequence-level ratio needs sequence_mean"),
    ("algorithm.clip_mode=stop_gradient", "is defined for token ratios (CISPO); set algorithm.ratio"),
    ("algorithm.clip_range_left=null", "clip_mode=min needs both widths; give two numbers"),
    ("model.shape.key_value_heads=3", "model.shape.heads=4: must be a multiple of model.shape.key_value"),
    ("hardware.processes=2", "more than one process needs hardware.zero_stage above 0; use hardware=zero2"),
    ("hardware.offload=true", "hardware.offload=true: is part of ZeRO; use hardware=zero3_offload"),
    ("training.optimizer=paged_adamw_8bit", "needs a GPU; on a CPU use training.optimizer=adamw_8bit"),
    ("hardware=zero2 hardware.processes=33 training.generations_per_iteration=256 training.num_generations=8",
     "there are 33 processes for the 32 prompts of an iteration"),
    ("hardware=zero3 model.use_lora=true model.use_4bit=true", "ZeRO-3 cannot shard quantized weights"),
    ("hardware=zero1 training.optimizer=adamw_8bit", "ZeRO supports adamw only; use"),
    ("training.length_curriculum_start=999", "=999: must not exceed rollout.max_completion_length="),
    ("rollout.max_completion_length=17000", "exceed the model's 16,384 positions; use rollout.max_prompt_"),
    # objects by dotted path
    ("task._target_=nope.Task", "task._target_=nope.Task: cannot be imported"),
    ("task._target_=os.path.join", "task._target_=os.path.join: must be a dataclass"),
    ("reward=nope.Reward", "reward=nope.Reward: cannot be imported"),
    ("task=gsm8k", "task.path: is needed; give a file of rows, such as JSON lines, with task.path=<file>"),
]  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize(("override", "fragment"), SENTENCES)
def test_bad_input_is_answered_in_one_sentence(override, fragment):
    said = sentence(*override.split(" "))
    assert fragment in said
    assert "\n" not in said
    assert len(said) < 200


# What is saved is what ran


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        [
            "model=moe",
            "algorithm=cispo",
            "hardware=single_gpu",
            "logging=wandb",
            "logging.wandb_tags=[a,'b c']",
        ],
        ["task=countdown", "algorithm=dapo", "task.system_prompt=\"é: 'x' # {y}\"", "logging.run_name=007"],
        ["experiment=smoke", "training.length_curriculum_start=8", "model.lora_target_modules=[q_proj]"],
    ],
)
def test_a_saved_configuration_loads_as_the_same_from_any_folder(overrides, tmp_path, monkeypatch):
    saved = tmp_path / "config.yaml"
    saved.write_text(resolved_yaml(composed(*overrides)), encoding="utf-8")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert build_config(load_saved(saved)) == built(*overrides)
    assert "${" not in saved.read_text(encoding="utf-8")


def test_no_file_of_a_group_reads_the_hydra_node_or_the_clock():
    for path in CONF_DIR.rglob("*.yaml"):
        text = path.read_text().split("\nhydra:\n")[0]  # that block is Hydra's own, and not saved with a run
        assert "${hydra" not in text, path
        assert "${now" not in text, path


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=moe", "algorithm=dapo", "model.presets.sequence.clip_range_left=0.1", "seed=2", "seed=3"],
        ["task=jsonl", "task.path='a b.jsonl'", "+reward_settings={a: [1, x]}", "reward=a.B"],
        [
            "experiment=moe_replay",
            "training.num_outer_iterations=3",
            "task.difficulty=2",
            "logging.wandb_tags=[a,b]",
        ],
    ],
)
def test_the_quick_way_of_tests_to_compose_is_that_of_hydra(overrides):
    assert composed_from_parts(*overrides) == composed(*overrides)


# Every key has a reader


def leaves(cls: type, path: str = "") -> list[str]:
    """Dotted names of the settings below a dataclass."""
    hints = get_type_hints(cls)
    found = []
    for field in fields(cls):
        inner, here = hints[field.name], f"{path}{field.name}"
        found += leaves(inner, f"{here}.") if is_dataclass(inner) else [here]
    return found


def attributes_read() -> set[str]:
    """Names of all attributes that the package reads; a range check is no reader."""
    names: set[str] = set()
    for path in (ROOT / "gspo_cli").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name == "__post_init__":
                node.body = []
        names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return names


KEYS = [key for key in leaves(RunConfig) if not key.startswith("model.presets.")]


def test_every_key_of_the_schema_is_read_somewhere():
    read = attributes_read()
    unread = {key for key in KEYS if key.rpartition(".")[2] not in read}
    conf = "".join(path.read_text(encoding="utf-8") for path in CONF_DIR.rglob("*.yaml"))
    assert {key for key in unread if f"${{{key}}}" not in conf} == set()  # tasks refer to some


def test_every_key_of_a_task_is_read_somewhere():
    keys = {field.name for name in options("task") for field in fields(built(*task(name)).task)}
    text = (CONF_DIR / "rollout" / "transformers.yaml").read_text()  # asks the task how long answers are
    assert {key for key in keys if f"task.{key}" not in text} - attributes_read() == set()


def test_every_preset_is_read_by_a_file_of_conf():
    text = "".join(path.read_text() for path in CONF_DIR.rglob("*.yaml"))
    presets = [key for key in leaves(RunConfig) if key.startswith("model.presets.")]
    assert len(presets) == 11
    sizes = {f"model.presets.{name}" for name in asdict(Sizes(1, 1, 1))}
    assert {key for key in presets if f"${{{key}}}" not in text} == sizes
