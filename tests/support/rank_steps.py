"""Run on every rank by tests/test_zero.py: some optimizer steps of each case, saved by the first rank."""

from __future__ import annotations

import json
import sys
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch

from gspo_cli.config.compose import build_config, load_saved, register
from gspo_cli.policy.loading import load_policy
from gspo_cli.training.metrics import Clock, update_metrics
from gspo_cli.training.process_group import ProcessGroup, join, leave
from gspo_cli.training.sharing import Sharing
from gspo_cli.training.strategy import OneProcess
from gspo_cli.training.update import Updater
from tests.support.batches import conversations


def steps(config, model: Path, folder: Path, ranks: ProcessGroup | None, rounds: int = 2) -> list[dict]:
    """Metrics of `rounds` iterations over random samples; the model and AdamW's state are left in
    `folder`."""
    if ranks is None:
        policy = load_policy(str(model), config.model, config.hardware)
        if config.algorithm.beta > 0 and not config.model.use_lora:
            policy.keep_reference(load_policy(str(model), config.model, config.hardware).causal_model)
        strategy = OneProcess(policy, config)
    else:
        from gspo_cli.training.zero import ZeroStrategy, sharded_loading

        with sharded_loading(config):
            policy = load_policy(str(model), config.model, config.hardware)
            if config.algorithm.beta > 0 and not config.model.use_lora:
                policy.keep_reference(load_policy(str(model), config.model, config.hardware).causal_model)
        strategy = ZeroStrategy(policy, config, ranks)
    updater = Updater(policy, config, strategy, Sharing(True, attention_share=1e-4))
    found = [update(updater, seed) for seed in range(rounds)]
    optimizer = strategy.save(folder)
    if strategy.ranks.is_first:
        torch.save(optimizer, folder / "optimizer.pt")
    strategy.ranks.wait()
    if ranks is not None:  # ranks take a wrong way and return to what was saved, one process goes on
        critic = deepcopy(updater.critic and updater.critic.state_dict())
        update(updater, seed=9)
        if critic is not None:
            updater.critic.load_state_dict(critic)
        strategy.restore_weights(folder)
        strategy.restore_optimizer(torch.load(folder / "optimizer.pt"))
    found.append(update(updater, seed=7))
    return found


def update(updater: Updater, seed: int) -> dict:
    """Metrics of an iteration over random samples, which share their beginnings."""
    vocabulary = updater.policy.causal_model.config.vocab_size
    samples = conversations(vocabulary, groups=3, seed=seed)
    if seed == 1:  # only one conversation has work: a rank is idle
        for sample in samples[1:]:
            sample.advantages = [0.0]
    if updater.critic is not None:
        for sample, values in zip(samples, updater.values(samples), strict=True):
            sample.values, sample.returns = values, [sample.advantages[0]] * sample.length
    return update_metrics(updater.run(samples, np.random.default_rng(seed), Clock()))


def main() -> None:
    """Cases are folders with a config.yaml; the model of each is at `model.name`."""
    register()
    ranks = None
    for case in map(Path, sys.argv[1:]):
        config = build_config(load_saved(case / "config.yaml"))
        ranks = ranks or join(config.hardware)
        found = steps(config, Path(config.model.name), case, ranks)
        if ranks.is_first:
            (case / "metrics.json").write_text(json.dumps(found))
    leave(ranks)


if __name__ == "__main__":
    main()
