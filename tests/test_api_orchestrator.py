"""One agent trained by several algorithms: every one trains the language model, from the same weights."""

from __future__ import annotations

import asyncio
import json
import signal

import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM

from gspo_cli import (
    AgentConfig,
    ConversationEnvironment,
    GSPOConfig,
    MultiTurnAgent,
    UserError,
    create_advanced_rl_orchestrator,
)
from gspo_cli.compare.result import Verdict
from gspo_cli.config.compose import CONF_DIR
from gspo_cli.run.folder import RunFolder
from tests.support.api_runs import CARDS, OVERRIDES, QUICK, arithmetic, tiny_agent
from tests.support.tasks import write
from tests.support.whole_runs import EvenReward

pytestmark = pytest.mark.long

ALGORITHMS = sorted(path.stem for path in (CONF_DIR / "algorithm").glob("*.yaml"))
FAST = QUICK | {"num_outer_iterations": 1, "learning_rate": 0.01, "overrides": OVERRIDES}


def agent_for(algorithm):
    return MultiTurnAgent(AgentConfig("tiny_moe" if algorithm == "grpo_replay" else "tiny"))


def train(folder, reporter, algorithm, **changes):
    orchestrator = create_advanced_rl_orchestrator(agent_for(algorithm))
    settings = FAST | {"output_dir": folder} | changes
    trained = asyncio.run(
        orchestrator.train(
            algorithm, environment=arithmetic(), reward_model=EvenReward(), reporter=reporter, **settings
        )
    )
    assert trained is orchestrator.agent
    return trained


def compare(folder, reporter, algorithms, environment=None, **changes):
    orchestrator = create_advanced_rl_orchestrator(tiny_agent())
    settings = FAST | {"output_dir": folder, "num_outer_iterations": 2} | changes
    given = {"reward_model": EvenReward(), "reporter": reporter} | settings
    return asyncio.run(orchestrator.compare(algorithms, environment or arithmetic(), **given))


def weights(agent):
    return {name: value.clone() for name, value in agent.policy.causal_model.named_parameters()}


def settings_of(agent):
    return OmegaConf.load(agent.run_folder / "config.yaml")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_of_the_configuration_trains_the_language_model(algorithm, tmp_path, reporter):
    agent = train(tmp_path, reporter, algorithm)
    assert (agent.summary["status"], agent.summary["algorithm"]) == ("completed", algorithm)
    assert settings_of(agent).algorithm.name == algorithm
    before = AutoModelForCausalLM.from_pretrained(RunFolder(agent.run_folder).initial_model)
    trained = weights(agent)
    changed = [(trained[name] - value).abs().max() for name, value in before.named_parameters()]
    assert max(changed) > 1e-4


def test_the_orchestrator_lists_its_algorithms():
    assert create_advanced_rl_orchestrator(tiny_agent()).algorithms == ALGORITHMS
    assert {"gspo", "gspo_token", "grpo"} <= set(ALGORITHMS)


def test_training_begins_with_the_named_model_each_time(tmp_path, reporter):
    orchestrator = create_advanced_rl_orchestrator(tiny_agent())

    def once(name):
        given = FAST | {"output_dir": tmp_path / name, "reporter": reporter}
        return weights(asyncio.run(orchestrator.train("gspo", arithmetic(), EvenReward(), **given)))

    first, second = once("first"), once("second")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_settings_are_those_of_the_algorithm_unless_given(tmp_path, reporter):
    agent = train(tmp_path, reporter, "grpo", num_iterations=1, warmup_steps=3)
    saved = settings_of(agent)
    assert (saved.algorithm.clip_range_left, saved.algorithm.clip_range_right) == (0.2, 0.27)
    assert (saved.training.num_outer_iterations, saved.training.warmup_iterations) == (1, 3)
    behind = train(tmp_path / "behind", reporter, "grpo algorithm.clip_range_left=0.1")
    assert settings_of(behind).algorithm.clip_range_left == 0.1
    config = GSPOConfig(
        seed=7, num_outer_iterations=1, **{k: v for k, v in FAST.items() if k in ("overrides",)}
    )
    given = train(tmp_path / "given", reporter, "grpo", config=config, seed=8)
    assert (settings_of(given).seed, settings_of(given).algorithm.clip_range_left) == (8, 0.2)


def test_pairs_of_a_file_stand_behind_the_name(tmp_path, reporter):
    rows = [{"prompt": f"{n}+1=", "chosen": f"{n + 1}"[::-1], "rejected": "0"} for n in range(10)]
    name = f"dpo algorithm.pairs={write(tmp_path / 'pairs.jsonl', *rows)}"
    with pytest.raises(UserError, match=r"training\.num_generations=4: a pair of algorithm\.pairs has two"):
        train(tmp_path, reporter, name)
    more = {"num_generations": 2, "generations_per_iteration": 16, "seeds": [0]}
    found = compare(tmp_path, reporter, [name, "dpo"], **more)
    assert [run.status for run in found.runs] == ["completed"] * 2
    assert found.of(name)[0].rewards == [None, None] != found.of("dpo")[0].rewards
    assert "reward – to –" in str(found)


def test_compare_measures_every_algorithm_from_the_same_weights(tmp_path, reporter):
    found = compare(tmp_path, reporter, ["gspo", "grpo"], seeds=[0, 1])
    assert [(run.algorithm, run.seed) for run in found.runs] == [
        ("gspo", 0),
        ("grpo", 0),
        ("gspo", 1),
        ("grpo", 1),
    ]
    for seed, own in zip((0, 1), (found.runs[:2], found.runs[2:]), strict=True):
        assert own[0].scores[0] == own[1].scores[0]
        assert own[0].rewards[0] == own[1].rewards[0]  # the first rollout is the same
        for run in own:
            folder = RunFolder(run.run_folder)
            assert run.rewards == [line["reward"] for line in folder.read("metrics.jsonl")]
            assert list(run.scores.items()) == [
                (line["iteration"], line["score"]) for line in folder.read("evals.jsonl")
            ]
            assert (
                run.final_score
                == json.loads((folder.path / "summary.json").read_text())["final_eval"]["score"]
            )
            assert (OmegaConf.load(folder.config).seed, run.status) == (seed, "completed")
    rollouts = [OmegaConf.load(run.run_folder / "config.yaml").rollout for run in found.runs]
    assert {rollout.old_logprobs_band for rollout in rollouts} == {0.0003}  # the narrowest clip width of all
    assert found.of("grpo") == [found.runs[1], found.runs[3]]
    assert found.report.voided == []
    assert not found.report.left_out
    assert found.headline == found.report.headline
    assert (found.folder / "report.html").exists()
    shown = str(found).splitlines()
    assert shown[0].startswith("gspo, seed 0: held-out ")
    assert shown[4:] == list(found.headline)


def test_compare_leaves_the_agent_as_it_is(tmp_path, reporter):
    agent = tiny_agent()
    orchestrator = create_advanced_rl_orchestrator(agent)
    given = FAST | {"output_dir": tmp_path, "reporter": reporter}
    asyncio.run(orchestrator.compare(["gspo", "gspo_token"], arithmetic(), EvenReward(), **given))
    assert (agent.policy, agent.summary, agent.run_folder) == (None, {}, None)


def test_the_runs_of_a_comparison_share_their_scenarios(tmp_path, reporter):
    environment = ConversationEnvironment(scenarios=CARDS, max_turns=2)
    overrides = [*OVERRIDES, "model.cold_start.steps=0"]
    found = compare(tmp_path, reporter, ["gspo", "grpo"], environment, overrides=overrides, seeds=[0, 1])
    paths = {OmegaConf.load(run.run_folder / "config.yaml").task.path for run in found.runs}
    assert paths == {str(found.folder / "scenarios.json")}
    assert found.report.voided == []


def test_an_algorithm_may_be_compared_with_itself_under_other_settings(tmp_path, reporter):
    names = ["grpo", "grpo algorithm.clip_range_left=0.1"]
    found = compare(tmp_path, reporter, names)
    widths = [OmegaConf.load(run.run_folder / "config.yaml").algorithm.clip_range_left for run in found.runs]
    assert widths == [0.2, 0.1]
    assert {contrast.verdict for contrast in found.report.contrasts} == {Verdict.void}  # one seed
    assert [run.algorithm for run in found.runs] == names


def test_a_comparison_without_a_verdict_still_has_its_numbers(tmp_path, reporter):
    class Stops:
        def on_start(self, run):
            return "grpo" not in run["title"]

    found = compare(tmp_path, reporter, ["gspo", "grpo"], callbacks=[Stops()])
    assert found.report is None
    assert found.headline[0].startswith("all runs are of gspo: there is nothing to compare it with")
    assert [len(run.rewards) for run in found.runs] == [2, 0]
    assert len(str(found).splitlines()) == 2


def test_ctrl_c_ends_the_whole_comparison(tmp_path, reporter):
    class Stops:
        async def on_iteration(self, metrics):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        compare(tmp_path, reporter, ["gspo", "grpo"], callbacks=[Stops()])
    assert len(list(tmp_path.glob("compare/*/runs/*"))) == 1


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda o: o.train("foo", arithmetic()),
            f"^algorithm=foo: is not an option; choose one of {', '.join(ALGORITHMS)}$",
        ),
        (lambda o: o.train("", arithmetic()), "^algorithm='': is not a name; give one such as gspo"),
        (lambda o: o.train(None, arithmetic()), "^algorithm=None: is not a name"),
        (lambda o: o.train("gspo", arithmetic(), colour=1), "^GSPOConfig.colour: is not a setting"),
        (lambda o: o.train("gspo", arithmetic(), "good"), "^reward_model: is a str; give an instance"),
        (
            lambda o: o.train("gspo", arithmetic(), use_gspo_token=True),
            "^GSPOConfig.use_gspo_token: the",
        ),
        (
            lambda o: o.train("grpo", arithmetic(), config=GSPOConfig(clip_range_left=3e-4)),
            "^GSPOConfig.clip_range_left=0.0003: is a width for sequence ratios, and grpo clips token ratios",
        ),
        (
            lambda o: o.compare(["gspo"], arithmetic()),
            r"^compare: \['gspo'\] has nothing to be",
        ),
        (lambda o: o.compare("gspo", arithmetic()), r"^compare: \['gspo'\] has nothing to be"),
        (lambda o: o.compare(["gspo", "gspo"], arithmetic()), "^compare: algorithms has gspo twice"),
        (
            lambda o: o.compare(["gspo", "gspo  algorithm.beta=0.0"], arithmetic()),
            "^compare: two algorithms have the same settings; leave one out",
        ),
        (lambda o: o.compare(["gspo", "grpo"], arithmetic(), seeds=[1, 1]), "^compare: seeds has 1 twice"),
        (lambda o: o.compare(["gspo", "grpo"], arithmetic(), seeds=[]), "^compare: seeds is empty"),
        (lambda o: o.compare(["gspo", "grpo"], arithmetic(), seed=1), "^compare: seed is one of seeds"),
        (
            lambda o: o.compare(["gspo", "grpo"], arithmetic(), clip_range_right=0.1),
            "^compare: clip_range_right is not the same for all algorithms; write it behind",
        ),
        (
            lambda o: o.compare(["gspo", "grpo"], arithmetic(), updates_per_rollout=1),
            "^gspo: training.updates_per_rollout=1: ",
        ),
    ],
)
def test_what_cannot_be_trained_or_compared_is_one_sentence(call, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=sentence) as error:
        asyncio.run(call(create_advanced_rl_orchestrator(tiny_agent())))
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_only_an_agent_can_be_orchestrated():
    with pytest.raises(UserError, match=r"^agent: is a AgentConfig; give a MultiTurnAgent"):
        create_advanced_rl_orchestrator(AgentConfig())
