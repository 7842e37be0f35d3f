"""The mutants of mutation.py: one wrong line each, chosen by hand, and the tests that have to notice it.

A group is a file, tests of what it does (files, or single tests where a file takes long), and pairs of text
and what replaces its first occurrence. Those of other groups of the same file need other tests."""

from __future__ import annotations

from algorithm_mutants import ALGORITHM_MUTANTS, Change

ALGORITHM, TRAINING = "gspo_cli/algorithm/", "gspo_cli/training/"
POLICY, ROLLOUT = "gspo_cli/policy/", "gspo_cli/rollout/"
TWO_RANKS = "test_zero.py::test_two_ranks_take_the_steps_of_one_process"

MUTANTS: dict[tuple[str, str], list[Change]] = {
    **ALGORITHM_MUTANTS,
    # ---- update
    (TRAINING + "critic.py", "test_actor_critic test_actor_critic_runs"): [
        ("advantage + value\n", "advantage\n"),
        (
            "at = [values[tokens[i]] for i in begins]",
            "at = [values[tokens[i]] for i in [e - 1 for e in ends]]",
        ),
        ("[0.0] * (len(begins) - 1) + [sum(earned)]", "[sum(earned)] + [0.0] * (len(begins) - 1)"),
        ("if algorithm.advantage_scale is not AdvantageScale.batch_std:", "if True:"),
        ("mask, algorithm.value.clip)", "mask, None)"),
        ("betas, weight_decay=0.0)", "(0.9, 0.999), weight_decay=0.0)"),
        ("betas, weight_decay=0.0)", "betas, weight_decay=0.1)"),
        ("torch.nn.utils.clip_grad_norm_(parameters, self.config.training.max_grad_norm).item()", "1.0"),
        ("if math.isfinite(norm):", "if True:"),
        ('self.optimizer.load_state_dict(state["optimizer"])', "pass"),
    ],
    (POLICY + "value_head.py", "test_actor_critic"): [
        ("self.share * (hidden - read)", "(hidden - read)"),
        ("@ self.weight + self.bias", "@ self.weight"),
    ],
    (TRAINING + "pairs.py", "test_preference"): [
        ("= -2 * slope", "= -slope"),
        ("gained / micro.action_mask.sum(dim=1).clamp(min=1)", "gained"),
        (
            "token_log_ratio(logprobs.double(), micro.ref_logprobs",
            "token_log_ratio(logprobs.double(), 0 * logprobs",
        ),
        ("(best > worst).sum()", "(best < worst).sum()"),
        ("(algorithm.beta * best.sum().item(), ", "(best.sum().item(), "),
    ],
    (TRAINING + "selection.py", "test_selection"): [
        ("np.quantile(everything, 1 - share)", "np.quantile(everything, share)"),
        ("values[micro.action_mask].double()", "values.flatten().double()"),
        ("everything = ranks.gather(mine)", "everything = mine"),
    ],
    (TRAINING + "update.py", "test_schedule test_passes test_update"): [
        ("peak * (step + 1) / warmup", "peak"),
        ("peak * (1 - progress)", "peak"),
        ("peak * (1 + math.cos(math.pi * progress)) / 2", "peak"),
        ("scheduled * self.rate_factor", "scheduled"),
        ("self.strategy.step(report.learning_rate), 0.0", "self.strategy.step(scheduled), 0.0"),
        (
            "learning_rate(self.config, self.steps, self.total_steps)\n        report",
            "self.config.algorithm.learning_rate\n        report",
        ),
        ("self.steps += 1", "pass"),
        ("self.steps = begun + passes * len(minibatches)", "pass"),
        ("> limit * sum(", "> 1e9 * sum("),
        ("if self._far(found):\n                    break", "if self._far(found):\n                    pass"),
        ("micro.old_logprobs, micro.experts = logprobs, experts", "pass"),
        (
            "old = logprobs.detach() if micro.old_logprobs is None else micro.old_logprobs",
            "old = logprobs.detach()",
        ),
        ("report.sums += found\n", "pass\n"),
    ],
    (TRAINING + "update.py", "test_entropy"): [
        (
            "paid * entropy[micro.action_mask].sum() / max(1, minibatch.tokens)",
            "paid * entropy[micro.action_mask].mean()",
        ),
        ("self.bonus.adapt(self.algorithm, report.sums.entropy)", "pass"),
        ("first or paid > 0", "first"),
    ],
    ("gspo_cli/algorithm/entropy.py", "test_entropy"): [
        ("self.coefficient += algorithm.entropy_step", "pass"),
        ("self.entropy <= floor", "self.entropy < floor"),
        ("max(0.0, self.coefficient - algorithm.entropy_step)", "self.coefficient - algorithm.entropy_step"),
    ],
    ("gspo_cli/policy/logprobs.py", "test_entropy"): [
        ("(log_p + entropy[part, None])", "(log_p - entropy[part, None])"),
        ("(of_entropy[part, None] / ctx.temperature)", "of_entropy[part, None]"),
    ],
    (TRAINING + "collator.py", "test_entropy"): [
        (" or algorithm.pays_entropy", ""),
    ],
    (TRAINING + "checkpoint.py", "test_entropy test_reference_refresh"): [
        ("updater.bonus = EntropyBonus(**state.bonus)", "pass"),
        ('updater.policy.restore_reference(saved["reference"])', "pass"),
    ],
    (TRAINING + "trainer.py", "test_reference_refresh"): [
        ("self.parts.policy.refresh_reference()", "pass"),
        ("self.state.iteration % refresh == 0", "True"),
    ],
    (TRAINING + "update.py", "test_update"): [
        ("forward(*scored, with_entropy", "forward(*scored[:2], 1.0, with_entropy"),
        ("forward(*scored, reference=True", "forward(*scored[:2], 1.0, reference=True"),
        ("entropy[micro.action_mask].sum().item()", "entropy.sum().item()"),
        ("int(micro.action_mask.sum())", "micro.action_mask.numel()"),
        ("self.strategy.drop_gradient()\n", "pass\n"),
        ("max(1, min(self.collator.budget, largest) // 2)", "self.collator.budget // 2"),
        ("reward_kl(self._logprobs(micro), self._ref", "-reward_kl(self._logprobs(micro), self._ref"),
        ("zip(micro.samples, compute(micro)", "zip(micro.samples[::-1], compute(micro)"),
        ("self.algorithm, minibatch.denominator", "self.algorithm, float(len(minibatch.micro_batches))"),
    ],
    (TRAINING + "update.py", "test_old_logprobs"): [
        ("error.abs().max().item()", "error.max().item()"),
        (
            "(old_logprobs - micro.sampling_logprobs)[micro.action_mask].abs()",
            "(old_logprobs - micro.sampling_logprobs)[micro.action_mask]",
        ),
    ],
    (TRAINING + "update.py", "test_correction test_off_policy test_selection"): [
        ("weighted(micro.advantages, weights", "weighted(micro.advantages, torch.ones_like(weights)"),
        ("micro.old_logprobs = micro.sampling_logprobs", "micro.old_logprobs = None"),
        ("advantages = advantages * kept", "pass"),
        ("(~kept & micro.action_mask)", "(kept & micro.action_mask)"),
        ("advantages = advantages * micro.selected", "pass"),
        ("for minibatch in minibatches if share < 1", "for minibatch in minibatches[:1] if share < 1"),
    ],
    (TRAINING + "update.py", "test_calibration"): [
        ("self.set_clip_range(calibrated(", "print(calibrated("),
        ("sums.candidates, report.tokens, *target", "sums.candidates, len(samples), *target"),
    ],
    (TRAINING + "update.py", "test_segments"): [("piece.weight * value", "value")],
    (TRAINING + "update.py", "test_routing"): [
        ("forced = micro.experts if replay else None", "forced = None"),
        ("router_aux_loss * sequences / computed * value", "router_aux_loss * value"),
    ],
    (TRAINING + "update.py", "test_actor_critic"): [
        ("relative * self.config.algorithm.value.learning_rate", "self.config.algorithm.learning_rate"),
        ("relative * self.config.algorithm.value.learning_rate", "self.config.algorithm.value.learning_rate"),
        ("loss = loss + error", "pass"),
        ("relative = report.learning_rate / self.config.algorithm.learning_rate", "relative = 1.0"),
        ("self.critic.drop_gradient()\n", "pass\n"),
    ],
    # ---- batch
    (TRAINING + "collator.py", "test_update test_counterfactual test_preference test_family_in_runs"): [
        ("(always or any(s.advantages))", "True"),
        ("(always or any(s.advantages))", "any(s.advantages)"),
        ("order.permutation(len(samples) // size)", "np.arange(len(samples) // size)"),
        ("sum(trained),\n", "sum(s.length for s in samples),\n"),
        ("short = [n for n in lengths if n <= median]", "short = [n for n in lengths if n < median]"),
        ("MinibatchBy.group or self.config.algorithm.in_pairs", "MinibatchBy.group"),
        ("whole = training.minibatch_by is MinibatchBy.group or", "whole ="),
    ],
    (TRAINING + "collator.py", "test_segments"): [
        (
            "counts, algorithm.aggregation, self.config.rollout.max_completion_length",
            "counts, algorithm.aggregation, 1",
        ),
    ],
    (TRAINING + "collator.py", "test_prefix_tree"): [
        (
            "np.asarray(sample.action_mask) for sample in micro.samples",
            "np.asarray([True] * sample.length) for sample in micro.samples",
        ),
        ("micro.sequences(slice(place, None), second)", "micro.sequences(slice(0, place), second)"),
        ("sorted(samples, key=lambda sample: list(sample.token_ids))", "list(samples)"),
    ],
    (TRAINING + "batch.py", "test_update test_segments"): [
        ("weight=1 / len(trained)", "weight=1"),
        ("self.trajectory.sampling_logprobs[self.span]", "self.trajectory.sampling_logprobs"),
        ("s.advantages * s.length if per_token", "[s.advantages[0]] + [0.0] * (s.length - 1) if per_token"),
        ("None if tensor is None else tensor[chosen]", "tensor"),
        (
            "self.advantages[span] if per_token else",
            "self.advantages[: len(self.token_ids[span])] if per_token else",
        ),
        ("any(self.action_mask[span])]", "True]"),
    ],
    (TRAINING + "batch.py", "test_actor_critic"): [
        ("return sum(trained) / max(1, len(trained))", "return sum(self.advantages) / self.length"),
        (
            "values=per_position([s.values for s in samples])",
            "values=per_position([s.returns for s in samples])",
        ),
    ],
    (TRAINING + "credit.py", "test_advantages test_conversations_in_training test_shaped_rewards"): [
        ("trajectory.excluded is None and not cut", "not cut"),
        ("trajectory.excluded is None and not cut", "trajectory.excluded is None"),
        ("last + (reward - sum(trajectory.turn_rewards))", "last"),
        ("penalty * (t.finish_reason is not FinishReason.stop)", "penalty"),
        ("- algorithm.overlong_penalty * overlong(", "- overlong("),
        (
            "max(Counter(turn for turn, sampled in turns if sampled).values(), default=0)",
            "sum(sampled for _, sampled in turns)",
        ),
        ('if "/" not in name}', "}"),
        ("- algorithm.beta * torch.tensor(reward_kl)", "- torch.tensor(reward_kl)"),
    ],
    (TRAINING + "credit.py", "test_preference"): [
        ("pair=place // size", "pair=place"),
        ("best_and_worst(rewards, valid & spoken)", "best_and_worst(rewards, valid)"),
    ],
    # ---- optimizer
    (TRAINING + "strategy.py", "test_update"): [
        ("torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm).item()", "1.0"),
        ('group["lr"] = rate', "pass"),
        ("parameter.grad = torch.zeros_like(parameter)", "pass"),
        ("if math.isfinite(norm):", "if True:"),
        ("loss.backward()", "(2 * loss).backward()"),
        ("self.drop_gradient()\n        return norm", "return norm"),
    ],
    (POLICY + "optimizers.py", "test_update test_quantization"): [
        (
            '"betas": (training.adam_beta1, training.adam_beta2)',
            '"betas": (training.adam_beta2, training.adam_beta1)',
        ),
        ('"weight_decay": training.weight_decay', '"weight_decay": 0.0'),
        ("Optimizer.adamw_8bit: optim.AdamW8bit", "Optimizer.adamw_8bit: optim.AdamW"),
        ("Optimizer.paged_adamw_8bit: optim.PagedAdamW8bit", "Optimizer.paged_adamw_8bit: optim.PagedAdamW"),
    ],
    (TRAINING + "zero.py", TWO_RANKS): [
        ("loss * self.ranks.size", "loss"),
        ('"gradient_clipping": config.training.max_grad_norm', '"gradient_clipping": 0.0'),
        ('group["lr"] = rate', "pass"),
    ],
    (TRAINING + "critic.py", TWO_RANKS): [
        ("torch.stack(parts).mean(dim=0)", "torch.stack(parts).sum(dim=0)"),
    ],
    # ---- log-probabilities
    (POLICY + "logprobs.py", "test_policy"): [
        ("logits if temperature == 1 else logits / temperature", "logits"),
        ("scaled = grad[part, None] / ctx.temperature", "scaled = grad[part, None]"),
        ("grad_bias += grad_logits.sum(dim=0)", "pass"),
        (
            "logits = linear(hidden.to(dtype), weight)",
            "logits = linear(hidden.bfloat16(), weight.bfloat16()).to(dtype)",
        ),
        ("linear(hidden.to(dtype), block)", "linear(hidden, block.to(hidden.dtype)).to(dtype)"),
        ("logits += bias.to(dtype)", "pass"),
        ("log_normalizer[part] - probabilities", "-probabilities"),
        ("key = (weight.data_ptr(), weight._version)", "key = (0, 0)"),
        ("exp_().mul_(-scaled)", "exp_().mul_(scaled)"),
        ("index=targets[part, None], src=scaled", "index=targets[part, None], src=2 * scaled"),
    ],
    (POLICY + "policy.py", "test_policy test_prefix_tree"): [
        ("trained[:, 0] = False", "pass"),
        ("with as_reference(self.model):", "with nullcontext():"),
        (
            "token_ids, action_mask, temperature, False, rows)\n        if not isinstance",
            "token_ids, action_mask, 1.0, False, rows)\n        if not isinstance",
        ),
        ("found = tuple(each[rows.places] for each in found)", "found = (found[0][rows.places], *found[1:])"),
        ("hidden[predicting(trained)]", "hidden[trained]"),
        ("with torch.autocast(hidden.device.type, enabled=False):", "with nullcontext():"),
    ],
    # ---- sampling
    (ROLLOUT + "sampling.py", "test_sampling"): [
        ("np.random.Philox(key=seed)", "np.random.Philox(key=0)"),
        ("uniform[:, None].double() * mass", "uniform[:, None].double()"),
        ("right=True", "right=False"),
        ("kept[:, top_k:] = False", "kept[:, top_k + 1 :] = False"),
        ("kept = before < top_p", "kept = before + ordered < top_p"),
        ("(1 - mass.squeeze(dim=1))", "(0 * mass.squeeze(dim=1))"),
        (
            "probabilities = torch.where(_kept(probabilities, top_p, top_k), probabilities, 0)",
            "logprobs = torch.where(_kept(probabilities, top_p, top_k), probabilities, 0).log()",
        ),
        (".max(dim=-1)\n", ".min(dim=-1)\n"),
    ],
    (ROLLOUT + "transformers_engine.py", "test_sampling test_rollout"): [
        ("uniforms([row.request.seed for", "uniforms([0 for"),
        ("next_token_logits(hidden, temperature), uniform", "next_token_logits(hidden, 1.0), uniform"),
        ("index=at).squeeze(dim=1)", "index=0 * at).squeeze(dim=1)"),
        ("(self.counts == self.limits)", "(self.counts > self.limits)"),
        ("torch.isin(new, stop_ids) |", ""),
        ("FinishReason.stop if stopped else", "FinishReason.length if stopped else"),
        ("sum(truncated[:count]) / count", "sum(truncated[:count])"),
        ("order = torch.cat(index).argsort()", "order = torch.cat(index)"),
        ("if temperature == 0:", "if temperature < 0.5:"),
    ],
}
