"""Settings that depend on each other: a default follows what was given, with a note, and given values that
contradict are refused with values that work when they are typed."""

from __future__ import annotations

import itertools
import json
import math
import re

import pytest

from gspo_cli.config.compose import build_config, composed, load_saved, resolved_yaml
from gspo_cli.config.schema import RunConfig
from gspo_cli.config.sizes import Sizes, fitted_lengths, fitted_sizes, known_positions
from gspo_cli.errors import UserError
from gspo_cli.run.folder import RunFolder
from gspo_cli.run.identity import fingerprint, saved_settings
from gspo_cli.training.lengths import fit_lengths
from tests.support.configs import composed_from_parts

PRESETS = {"tiny": Sizes(8, 256, 4), "small": Sizes(4, 100, 4), "moe": Sizes(6, 96, 4)}
NAMES = ("num_generations", "generations_per_iteration", "updates_per_rollout")
ASSIGNMENT = re.compile(r"(?<![\w.])[a-z_0-9]+(?:\.[a-z_0-9]+)*=[^\s;,]+")


def built(*overrides: str) -> RunConfig:
    return build_config(composed_from_parts(*overrides))


def refusal(*overrides: str) -> UserError | None:
    try:
        built(*overrides)
    except UserError as error:
        return error
    return None


def sizes(config: RunConfig) -> Sizes:
    training = config.training
    return Sizes(*(getattr(training, name) for name in NAMES))


def suggested(error: UserError) -> list[str]:
    """The settings that a refusal tells to type."""
    return ASSIGNMENT.findall(re.split(r"; (?:on a CPU )?(?:use|set) ", str(error))[-1].partition(", or ")[0])


def changed(overrides: list[str], suggestion: list[str]) -> list[str]:
    keys = {text.partition("=")[0] for text in suggestion}
    return [*(text for text in overrides if text.partition("=")[0] not in keys), *suggestion]


# ---- sizes of an iteration


@pytest.mark.parametrize(
    ("given", "presets", "expected"),
    [
        ({}, "small", (4, 100, 4)),
        ({"num_generations": 6}, "small", (6, 96, 4)),  # 96 and 108 are the multiples of 12 around 100
        ({"num_generations": 8}, "small", (8, 96, 4)),  # as far as 104, and fewer
        ({"num_generations": 6}, "tiny", (6, 252, 4)),
        ({"updates_per_rollout": 3}, "small", (4, 96, 3)),
        ({"num_generations": 6, "updates_per_rollout": 5}, "small", (6, 90, 5)),
        ({"generations_per_iteration": 30}, "small", (5, 30, 5)),
        ({"generations_per_iteration": 9}, "tiny", (9, 9, 3)),
        ({"generations_per_iteration": 2}, "tiny", (2, 2, 1)),
        ({"generations_per_iteration": 102, "num_generations": 6}, "small", (6, 102, 3)),
        ({"generations_per_iteration": 101}, "small", (4, 101, 4)),  # nothing near divides a prime
        ({"num_generations": 200}, "small", (200, 200, 4)),
    ],
)
def test_sizes_that_were_not_given_follow_those_that_were(given, presets, expected):
    assert fitted_sizes(given, PRESETS[presets], 1) == Sizes(*expected)


def test_every_combination_of_sizes_fits_or_is_refused_with_one_that_does():
    """Each of the three is left out or given; in pure numbers, as the resolvers and the check see them."""
    values = [None, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 30, 96, 97, 100, 101, 128, 255, 1000]
    for presets, processes in itertools.product(PRESETS.values(), (1, 3, 40)):
        for combination in itertools.product(values[:12], values, values[:11]):
            given = {name: value for name, value in zip(NAMES, combination, strict=True) if value is not None}
            if given.get("num_generations") == 1:
                continue
            found = fitted_sizes(given, presets, processes)
            assert all(getattr(found, name) == value for name, value in given.items())
            if found.fit(processes):
                continue
            assert "generations_per_iteration" in given  # else it would have followed
            total = found.nearest_total(processes)
            again = fitted_sizes({**given, "generations_per_iteration": total}, presets, processes)
            assert again.fit(processes)
            step = math.lcm(found.num_generations, found.updates_per_rollout)
            least = processes * found.num_generations
            assert abs(total - found.generations_per_iteration) <= max(step / 2, least + step)


COMBINATIONS = [
    ["model=small", "training.num_generations=6"],
    ["model=small", "training.num_generations=6", "training.generations_per_iteration=100"],
    ["model=small", "training.num_generations=6", "training.generations_per_iteration=102"],
    ["training.num_generations=7", "training.generations_per_iteration=100",
     "training.updates_per_rollout=3"],
    ["training.generations_per_iteration=101"],
    ["training.generations_per_iteration=20"],
    ["training.num_generations=1", "training.generations_per_iteration=9"],
    ["experiment=arithmetic", "training.num_generations=6"],
    ["experiment=smoke", "training.updates_per_rollout=3"],
    ["hardware=zero2", "hardware.processes=33"],
    ["hardware=zero2", "hardware.processes=33", "training.generations_per_iteration=256"],
    ["hardware=zero2", "hardware.processes=5", "training.generations_per_iteration=16",
     "training.num_generations=4", "training.updates_per_rollout=3"],
    ["hardware=multi_node", "training.generations_per_iteration=64"],
    ["hardware=multi_node", "hardware.nodes=40", "training.generations_per_iteration=64",
     "training.num_generations=8"],
    ["model.shape.positions=1024"],
    ["model.shape.positions=40"],
    ["model.shape.positions=1024", "rollout.max_completion_length=1000"],
    ["model.shape.positions=1024", "rollout.max_completion_length=2000"],
    ["model.shape.positions=1024", "rollout.max_completion_length=2000", "rollout.max_prompt_length=2000"],
    ["model.shape.positions=1024", "rollout.max_completion_length=800", "rollout.max_prompt_length=300",
     "training.length_curriculum_start=750"],
    ["training.length_curriculum_start=500"],
    ["model.shape.positions=64", "training.length_curriculum_start=500"],
    ["hardware=zero2", "hardware.processes=2", "rollout=vllm"],
    ["hardware=zero3_offload", "hardware.processes=2", "rollout=vllm"],
    ["hardware=zero2", "hardware.processes=2", "training.optimizer=paged_adamw_8bit"],
    ["hardware=zero2", "hardware.device=cpu", "training.optimizer=paged_adamw_8bit"],
    ["hardware=cpu", "training.optimizer=paged_adamw_8bit"],
    ["hardware=cpu", "hardware.processes=2"],
    ["hardware=cpu", "hardware.nodes=2"],
    ["hardware=cpu", "hardware.offload=true"],
    ["algorithm.discount=0.9"],
    ["algorithm=grpo", "algorithm.discount=0.9"],
    ["model.shape.heads=6", "model.shape.key_value_heads=4"],
    ["model.shape.experts=1"],
]  # fmt: skip


@pytest.mark.parametrize("overrides", COMBINATIONS, ids=" ".join)
def test_a_run_comes_out_or_the_first_suggestion_works(overrides):
    refused = refusal(*overrides)
    if refused is not None:
        assert suggested(refused), refused
        assert len(str(refused)) < 250
        assert refusal(*changed(overrides, suggested(refused))) is None


def test_what_follows_is_noted_with_its_default_and_the_reason():
    config = built("model=small", "training.num_generations=6")
    assert sizes(config) == Sizes(6, 96, 4)
    [note] = [note for note in config.notes if note.startswith("training.")]
    assert note == (
        "training.generations_per_iteration=96: in place of the default 100, to fit "
        "training.num_generations=6 and training.updates_per_rollout=4"
    )
    assert not [note for note in built("model=small").notes if note.startswith("training.")]


def test_a_refusal_satisfies_all_constraints_at_once():
    given = ["model=small", "training.num_generations=6", "training.generations_per_iteration=100"]
    with pytest.raises(UserError) as error:
        built(*given, "hardware=zero2", "hardware.processes=20")
    assert str(error.value) == (
        "training.generations_per_iteration=100: must be a multiple of training.num_generations=6 and of "
        "training.updates_per_rollout=4, with a prompt for each of 20 processes; use "
        "training.generations_per_iteration=120"
    )


@pytest.mark.parametrize("experiment", ["arithmetic", "grpo_baseline"])
def test_what_an_experiment_sets_counts_as_given(experiment):
    refused = refusal(f"experiment={experiment}", "training.updates_per_rollout=3")
    assert (refused is not None) == (experiment == "arithmetic")


def test_a_saved_configuration_has_nothing_left_to_follow():
    node = composed_from_parts("model=small", "training.num_generations=6", "model.name=x")
    assert "${" not in resolved_yaml(node)
    assert "in place of the default 100" in resolved_yaml(node)


def test_a_reference_of_the_users_own_is_left_to_the_checks():
    config = built("training.generations_per_iteration=${training.num_generations}")
    assert config.training.generations_per_iteration == config.training.num_generations


# ---- lengths against positions


@pytest.mark.parametrize(
    ("lengths", "positions", "given", "expected"),
    [
        ((2048, 128), 8192, (), (2048, 128)),
        ((8192, 256), 8192, (), (7936, 256)),
        ((2048, 128), 1024, (), (896, 128)),
        ((256, 2000), 1024, (), (256, 768)),
        ((2000, 2000), 1024, (), (512, 512)),
        ((2048, 1000), 1024, ("max_completion_length",), (24, 1000)),
        ((1000, 128), 1024, ("max_prompt_length",), (1000, 24)),
        ((2048, 2000), 1024, ("max_completion_length",), (2048, 2000)),  # is refused
        ((900, 200), 1024, ("max_prompt_length", "max_completion_length"), (900, 200)),
    ],
)
def test_lengths_are_lowered_to_the_positions_unless_they_are_given(lengths, positions, given, expected):
    assert fitted_lengths(lengths, positions, given) == expected


def test_any_lengths_and_positions_fit_or_are_as_given():
    values = (1, 2, 5, 17, 64, 65, 100, 999)
    names = ("max_prompt_length", "max_completion_length")
    for prompt, answer, positions in itertools.product(values, values, values[1:]):
        found = fitted_lengths((prompt, answer), positions)
        assert sum(found) <= positions
        assert all(1 <= after <= before for after, before in zip(found, (prompt, answer), strict=True))
        assert fitted_lengths((prompt, answer), positions, names) == (prompt, answer)


@pytest.mark.parametrize(
    ("described", "positions"),
    [
        ({"max_position_embeddings": 8192}, 8192),
        ({"n_positions": 1024}, 1024),
        ({"text_config": {"max_position_embeddings": 4096}}, 4096),
        ({"max_position_embeddings": 1, "text_config": {"max_position_embeddings": 4096}}, 4096),
        ({"max_position_embeddings": None}, None),
        ([], None),
        ("{", None),
    ],
)
def test_a_model_folder_tells_its_positions(described, positions, tmp_path):
    text = described if isinstance(described, str) else json.dumps(described)
    (tmp_path / "config.json").write_text(text)
    assert known_positions(str(tmp_path), 77) == positions
    assert known_positions(str(tmp_path / "nowhere"), 77) is None
    assert known_positions("embedded", 77) == 77


@pytest.mark.parametrize("task", ["tau_retail", "tau2"])
def test_tasks_of_8192_tokens_fit_a_model_of_8192_positions(task, tmp_path):
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 8192}')
    own = ["model=small", f"model.name={tmp_path}", f"task={task}", "task.path=lines.jsonl"]
    config = build_config(composed(own))
    assert (config.rollout.max_prompt_length, config.rollout.max_completion_length) == (7936, 256)
    assert config.rollout.default_lengths == ["max_prompt_length", "max_completion_length"]
    assert config.notes[-1] == (
        "rollout.max_prompt_length=7936: in place of the default 8192, to fit the model's 8,192 positions"
    )
    given = ["rollout.max_prompt_length=8192", "rollout.max_completion_length=256"]
    with pytest.raises(UserError) as error:
        build_config(composed([*own, *given]))
    assert suggested(error.value) == ["rollout.max_prompt_length=7936", "rollout.max_completion_length=256"]
    build_config(composed([*own, *suggested(error.value)]))


def test_lengths_of_a_model_from_a_hub_are_lowered_when_it_is_loaded_and_saved(tmp_path):
    node = composed(["model=small", "model.name=a/b", "rollout.max_completion_length=100"])
    config, folder, warned = build_config(node), RunFolder(tmp_path / "run"), []
    folder.create(resolved_yaml(node))
    before = fingerprint(saved_settings(folder.path))
    fit_lengths(config, 1024, folder, warned.append)
    assert (config.rollout.max_prompt_length, config.rollout.max_completion_length) == (924, 100)
    assert warned == config.notes[-1:]
    saved = build_config(load_saved(folder.config))
    assert (saved.rollout, saved.notes) == (config.rollout, config.notes)
    assert fingerprint(saved_settings(folder.path)) == before  # a sweep finds its run again
    fit_lengths(saved, 1024, folder, warned.append)
    assert len(warned) == 1


def test_given_lengths_that_do_not_fit_a_model_from_a_hub_are_refused(tmp_path):
    given = ["rollout.max_prompt_length=2000", "rollout.max_completion_length=100"]
    config = build_config(composed(["model=small", "model.name=a/b", *given]))
    with pytest.raises(UserError) as error:
        fit_lengths(config, 1024, None, lambda text: None)
    assert suggested(error.value) == ["rollout.max_prompt_length=924", "rollout.max_completion_length=100"]
