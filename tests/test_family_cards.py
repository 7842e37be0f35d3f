"""Start card and model card of the family: each says what its algorithm does, and nothing of others."""

from __future__ import annotations

import re

import pytest

from gspo_cli.config.cautions import cautions
from gspo_cli.sources import ModelSource
from gspo_cli.training.model_card import model_card
from tests.support.whole_runs import EvenReward, run


def facts(folder):
    """The lines of card.txt by their name; notes are listed."""
    lines = [line.split(maxsplit=1) for line in (folder.path / "card.txt").read_text().splitlines()[1:]]
    return {name: text for name, text in lines if name != "note"}, [t for name, t in lines if name == "note"]


def trained(configure, tmp_path, reporter, *overrides):
    config, text = configure(f"reward={EvenReward.__module__}.EvenReward", *overrides)
    return config, run((config, text), tmp_path, reporter)[1]


def exported(config, folder):
    """The README of its last checkpoint."""
    place = folder.checkpoints / "iteration-000002"
    assert place.is_dir()
    return model_card(ModelSource(str(place)), config, folder, None, None)


def test_the_cards_of_pairs_have_no_ratio_no_old_policy_and_no_clip(configure, tmp_path, reporter):
    config, folder = trained(configure, tmp_path, reporter, "algorithm=dpo")
    said, notes = facts(folder)
    assert said["objective"].startswith("log sigmoid(0.1 h), h = sum of log(p/ref)")
    assert said["objective"].endswith("(mean over pairs)")
    assert {"ratio", "value", "band"}.isdisjoint(said)
    assert not [note for note in notes if "old_logprobs" in note]
    readme = exported(config, folder)
    assert "log(p/ref), best minus worst answer (mean over pairs) |" in readme
    for absent in ("| ratio |", "clip", "| KL coefficient |", "value head"):
        assert absent not in readme


@pytest.mark.long
def test_the_cards_of_an_actor_critic_name_the_head_and_the_end_of_the_updates(configure, tmp_path, reporter):
    options = "training.target_kl=0.05", "training.passes=2", "algorithm.value.clip=0.3"
    config, folder = trained(configure, tmp_path, reporter, "algorithm=ppo", *options)
    said, notes = facts(folder)
    assert said["value"].startswith("(V - return)^2 / 2, at least that of V within 0.3 of its old value; a ")
    assert said["iteration"].endswith("updates of 4 answers, in 2 passes, ended early at a KL of 0.05")
    assert "lambda 1," in said["advantage"]
    assert "value" not in said["advantage"]
    assert not [note for note in notes if "value head" in note]
    readme = exported(config, folder)
    assert "| advantage | A = GAE over tokens, whitened: lambda 1, discount 1; " in readme
    assert "0.1 of its gradient goes into the model; not exported |" in readme
    assert "8 updates in 2 passes, ended early at a KL of 0.05 |" in readme

    # a second run from this one's checkpoint
    start = f"model.name={folder.checkpoints / 'iteration-000002'}"
    unread = "algorithm.value: the value head starts anew; that of model.name is not loaded"
    for algorithm, expected in (("a2c", 1), ("gspo", 0)):
        _, second = trained(configure, tmp_path / algorithm, reporter, f"algorithm={algorithm}", start)
        assert facts(second)[1].count(unread) == expected


@pytest.mark.parametrize("algorithm", ["sapo", "rloo", "a2c"])
def test_no_card_has_a_band_where_nothing_clips(configure, tmp_path, reporter, algorithm):
    config, folder = trained(configure, tmp_path, reporter, f"algorithm={algorithm}")
    readme = exported(config, folder)
    assert not re.search(r"\binf\b", readme + (folder.path / "card.txt").read_text())
    assert "| ratio | w" in readme


def test_an_unclipped_product_of_ratios_is_cautioned_where_the_policy_moves(configure):
    def cautioned(*overrides):
        found = cautions(configure(*overrides)[0])
        return [text for text in found if text.startswith("algorithm.ratio_level=sequence_product: nothing")]

    assert len(cautioned("algorithm=rloo")) == 1
    assert len(cautioned("algorithm=rloo", "training.updates_per_rollout=1", "training.passes=2")) == 1
    assert not cautioned("algorithm=rloo", "training.updates_per_rollout=1")
    clipped = "algorithm.clip_mode=min", "algorithm.clip_range_left=0.5", "algorithm.clip_range_right=0.5"
    assert not cautioned("algorithm=rloo", *clipped)
    assert not cautioned("algorithm=rloo_token")
