"""The mutants of mutation.py: one wrong line each, chosen by hand, and the tests that have to notice it.

A group is a file, tests of what it does (files, or single tests where a file takes long), and pairs of text
and what replaces its first occurrence. Those of other groups of the same file need other tests."""

from __future__ import annotations

ALGORITHM, TRAINING = "gspo_cli/algorithm/", "gspo_cli/training/"
POLICY, ROLLOUT = "gspo_cli/policy/", "gspo_cli/rollout/"
TWO_RANKS = "test_zero.py::test_two_ranks_take_the_steps_of_one_process"

Change = tuple[str, str]
MUTANTS: dict[tuple[str, str], list[Change]] = {
    # ---- algorithm
    (ALGORITHM + "objective.py", "test_objective test_family test_off_policy"): [
        ("torch.where(action_mask, logprobs - old_logprobs, 0)", "logprobs - old_logprobs"),
        (
            "log_ratio.sum(dim=1, keepdim=True) / action_mask",
            "log_ratio.mean(dim=1, keepdim=True) / action_mask",
        ),
        ("return log_s.detach() + own", "return log_s + own"),
        ("return log_s.detach() + own", "return own"),
        ("return log_ratio.sum(dim=1, keepdim=True)\n", "return log_ratio.mean(dim=1, keepdim=True)\n"),
        ("difference.square() / 2", "difference.square()"),
        ("torch.expm1(-difference) + difference", "torch.expm1(difference) - difference"),
        (
            "torch.where(action_mask, logprobs - ref_logprobs, 0)",
            "torch.where(action_mask, ref_logprobs - logprobs, 0)",
        ),
        ("return sequence_log_ratio(log_ratio, action_mask).squeeze(dim=1)", "return log_ratio.sum(dim=1)"),
        ("counts = [count for count in action_counts if count > 0]", "counts = list(action_counts)"),
        ("return float(max(1, sum(counts)))", "return float(max(1, len(counts)))"),
        ("length = max_completion_length if", "length = max(counts, default=1) if"),
        ("if aggregation is Aggregation.sequence_mean:", "if aggregation is not Aggregation.token_mean:"),
        ("per_sequence / action_mask.sum(dim=1).clamp(min=1)", "per_sequence / action_mask.shape[1]"),
        ("torch.where(action_mask, term, 0).sum(dim=1)", "term.sum(dim=1)"),
        ("loss = -aggregate(", "loss = aggregate("),
        ("loss = loss + algorithm.beta * penalty", "loss = loss - algorithm.beta * penalty"),
        ("loss = loss + algorithm.beta * penalty", "loss = loss + penalty"),
        ("if algorithm.kl_bias_corrected:", "if False:"),
        ("kl = kl * by_token.exp()", "kl = kl * by_token.detach().exp()"),
        ("log_ratio.detach() if per_token else log_ratio.detach()[:, :1]", "log_ratio.detach()"),
        ("torch.expm1(log_ratio)[counted]", "(log_ratio.float().exp() - 1).double()[counted]"),
        ("answers(clipped, weights)", "clipped.sum() + 1"),
    ],
    (ALGORITHM + "objective.py", "test_segments"): [
        ("if weights is None else per_sequence * weights", "if weights is None else per_sequence"),
        ("return rows.sum() if weights is None else (rows * weights).sum()", "return rows.sum()"),
    ],
    (ALGORITHM + "objective.py", "test_passes"): [
        ("kl_penalty(old_logprobs.double(), logprobs", "kl_penalty(logprobs.detach().double(), logprobs"),
    ],
    (ALGORITHM + "gates.py", "test_objective test_family test_family_in_runs"): [
        ("value.clamp(min=bottom, max=top)", "value.clamp(max=top)"),
        ("value.clamp(min=bottom, max=top)", "value.clamp(min=bottom)"),
        ("torch.where(clipped, weight, torch.where", "torch.where(clipped_high, weight, torch.where"),
        ("torch.where(clipped, weight, torch.where", "torch.where(clipped_low, weight, torch.where"),
        ("torch.where(clipped, 0, log_ratio).exp()", "log_ratio.exp()"),
        ("(value < low) & (advantages != 0)", "value < low"),
        ("(value > high) & (advantages != 0)", "value > high"),
        ("(advantages < 0) & (value < low), (", "(advantages <= 0) & (value < low), ("),
        ("(advantages > 0) & (value > high)", "(advantages >= 0) & (value > high)"),
        ("term = weight * torch.where(action_mask, logprobs, 0)", "term = weight * logprobs.exp()"),
        ("if algorithm.clip_ratio_dual is not None:", "if False:"),
        ("(advantages < 0) & (value > bound)", "value > bound"),
        ("algorithm.clip_ratio_dual * advantages, weight", "advantages, weight"),
        ("clipped_high = clipped_high | beyond", "pass"),
        ("return 4 / tau * torch.sigmoid", "return 4 * torch.sigmoid"),
        ("torch.sigmoid(tau * distance)", "torch.sigmoid(distance)"),
        ("log_ratio.clamp(max=SATURATED)", "log_ratio"),
        (
            "advantages > 0, torch.full_like(advantages, tau_pos), tau_neg",
            "advantages < 0, torch.full_like(advantages, tau_pos), tau_neg",
        ),
        ("* deviation / 2).square()", "* deviation).square()"),
        ("torch.where(high, log_band[1], token_log_ratio)", "token_log_ratio"),
        ("torch.where(low, log_band[0], torch", "torch.where(low, log_band[1], torch"),
        ("bounded.sum(dim=1, keepdim=True) / count", "bounded.sum(dim=1, keepdim=True)"),
        ("return log_s.exp() * advantages", "return (1 + log_s) * advantages"),
    ],
    (ALGORITHM + "advantages.py", "test_advantages test_shaped_rewards test_family"): [
        ("(valid.sum(dim=1) - 1).clamp(min=1)).sqrt()", "valid.sum(dim=1).clamp(min=1)).sqrt()"),
        ("everything = rewards[valid]", "everything = rewards.nan_to_num().flatten()"),
        ("spread = spread.clamp(min=std_floor)", "spread = spread + std_floor"),
        ("centered * count / (count - 1)", "centered * (count - 1) / (count - 1)"),
        ("highest - lowest > ZERO_RANGE * size", "highest - lowest > ZERO_RANGE"),
        ("highest - lowest > ZERO_RANGE * size", "highest > lowest"),
        ("discount * to_go[:, :, turn + 1]", "to_go[:, :, turn + 1]"),
        ("reshape(prompts, turns, answers).transpose(1, 2)", "reshape(prompts, answers, turns)"),
        (
            "rewards - rewards.sum(dim=1, keepdim=True) / count, 0",
            "rewards - rewards.mean(dim=1, keepdim=True), 0",
        ),
        # reinforce_pp
        ("valid & has_spread(flat, counted)", "valid & has_spread(rewards, valid)[:, None]"),
        ("_centered(flat, counted).reshape(rewards.shape)", "_centered(rewards, valid)"),
        # advantage_parts
        ("group_advantages(part, valid, std_floor=std_floor)", "group_advantages(part, valid)"),
        ("AdvantageBaseline.batch_mean, AdvantageScale.batch_std)", "std_floor=std_floor)"),
        ("torch.stack(by_part).sum(dim=0)", "by_part[0]"),
        # dapo's penalty of long answers
        ("start = limit * (1 - buffer)", "start = limit * buffer"),
        ("/ (limit - start)).clamp(min=0, max=1)", "/ (limit - start)).clamp(min=0)"),
        ("/ (limit - start)).clamp(min=0, max=1)", "/ (limit - start)).clamp(max=1)"),
    ],
    (ALGORITHM + "correction.py", "test_correction test_off_policy"): [
        ("ratio.clamp(max=limit)", "ratio"),
        ("(ratio > limit) | (ratio < 1 / limit)", "(ratio > limit) | (ratio < 2 - limit)"),
        ("(ratio > limit) | (ratio < 1 / limit)", "ratio > limit"),
        ("ratio if kind is EngineCorrection.token_mask else torch.ones_like(ratio)", "ratio"),
        ("return advantages * weights", "return advantages"),
        ("if level.is_whole and weights.shape[1] > 1:", "if False:"),
        ("(advantages >= 0) |", "(advantages > 0) |"),
        ("(advantages >= 0) |", ""),
        ("(-sequence_log_ratio(log_ratio, action_mask) <= limit)", "(-log_ratio.mean() <= limit)"),
        (
            "(-sequence_log_ratio(log_ratio, action_mask) <= limit)",
            "(sequence_log_ratio(log_ratio, action_mask) <= limit)",
        ),
    ],
    (ALGORITHM + "calibration.py", "test_calibration test_family_in_runs"): [
        ("(low | high) & action_mask", "low | high"),
        ("tokens = would_clip.sum(dim=1).float()", "tokens = would_clip.any(dim=1).float()"),
        ("deviation = at_level if in_logs else torch", "deviation = torch"),
        ("fraction * trained_tokens / max(1, len(bounded))", "fraction * trained_tokens"),
        ("min(widest_left, left)", "left"),
        ("max(NARROWEST, width)", "width"),
    ],
    (ALGORITHM + "counterfactual.py", "test_counterfactual test_family_in_runs"): [
        ("if objective.dual is not None:", "if False:"),
        ("((advantages != 0) & action_mask).any(dim=1) & compare", "action_mask.any(dim=1) & compare"),
        (".any(dim=1) & compare_weights", ".any(dim=1)"),
        ("short = counts <= median", "short = counts < median"),
        ("return deviation.clamp(min=bottom - 1, max=top - 1)", "return deviation"),
        ("deviation * (1 - fading) - fading, -1)", "deviation, -1)"),
        ("covariance = self.xy - self.x * self.y / self.compared", "covariance = self.xy"),
    ],
    (ALGORITHM + "actor_critic.py", "test_actor_critic"): [
        ("discount * lam * later", "lam * later"),
        ("delta + discount * lam * later", "delta + discount * later"),
        ("+ discount * following - values[step]", "+ following - values[step]"),
        ("following = values[step]\n", "following = 0.0\n"),
        ("error = torch.where(clipped, limited, error)", "error = limited"),
        ("clipped = limited > error", "clipped = limited < error"),
        ("(values - old).clamp(-clip, clip)", "(values - old).clamp(max=clip)"),
        ("return error / 2, ", "return error, "),
        ("returns = torch.where(action_mask, returns, 0)", "pass"),
        ("centered = values - values.mean()", "centered = values"),
        ("spread = values.std().clamp(min=std_floor)", "spread = values.std(correction=0)"),
        ("spread = values.std().clamp(min=std_floor)", "spread = values.std()"),
        ("return 1 - _variance(", "return _variance("),
    ],
    (ALGORITHM + "preference.py", "test_preference"): [
        ("difference - 1 / (2 * beta)", "difference - 1 / beta"),
        ("softplus(-beta * difference)", "softplus(-difference)"),
        ("-beta * torch.sigmoid(-beta * difference)", "-torch.sigmoid(-beta * difference)"),
        (".argmin(dim=1", ".argmax(dim=1"),
        ("torch.where(valid, rewards, torch.inf)", "rewards"),
        ("torch.where(has_spread(rewards, valid)[:, None], signs, 0.0)", "signs"),
    ],
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
        ("norm = self.strategy.step(report.learning_rate)", "norm = self.strategy.step(scheduled)"),
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
    (TRAINING + "update.py", "test_actor_critic"): [
        ("relative * self.config.algorithm.value.learning_rate", "self.config.algorithm.learning_rate"),
        ("relative * self.config.algorithm.value.learning_rate", "self.config.algorithm.value.learning_rate"),
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
        ("error.abs().max().item()", "error.max().item()"),
        (
            "(old_logprobs - micro.sampling_logprobs)[micro.action_mask].abs()",
            "(old_logprobs - micro.sampling_logprobs)[micro.action_mask]",
        ),
        ("minibatch.denominator, first, minibatch.median", "len(minibatch.micro_batches), first, 0.0"),
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
        ("loss = loss + error", "pass"),
        ("relative = report.learning_rate / self.config.algorithm.learning_rate", "relative = 1.0"),
        ("self.critic.drop_gradient()\n", "pass\n"),
    ],
    # ---- batch
    (TRAINING + "collator.py", "test_update test_counterfactual test_preference test_family_in_runs"): [
        ("(algorithm.kl_in_loss or algorithm.has_critic or any(s.advantages))", "True"),
        ("(algorithm.kl_in_loss or algorithm.has_critic or any(s.advantages))", "any(s.advantages)"),
        (
            "counts, algorithm.aggregation, self.config.rollout.max_completion_length",
            "counts, algorithm.aggregation, 1",
        ),
        ("order.permutation(len(samples) // size)", "np.arange(len(samples) // size)"),
        ("sum(trained),\n", "sum(s.length for s in samples),\n"),
        ("short = [n for n in lengths if n <= median]", "short = [n for n in lengths if n < median]"),
        ("MinibatchBy.group or self.config.algorithm.in_pairs", "MinibatchBy.group"),
        ("whole = training.minibatch_by is MinibatchBy.group or", "whole ="),
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
