"""The mutants of mutation.py: one wrong line each, chosen by hand, and the tests that have to notice it.

A group is a file, the tests of what it does, and pairs of text and what replaces its first occurrence."""

from __future__ import annotations

OBJECTIVE = ("gspo_cli/algorithm/objective.py", "test_objective test_family test_update")
GATES = ("gspo_cli/algorithm/gates.py", "test_objective test_family test_counterfactual")
ADVANTAGES = ("gspo_cli/algorithm/advantages.py", "test_advantages test_shaped_rewards test_family")
CORRECTION = ("gspo_cli/algorithm/correction.py", "test_correction")
CALIBRATION = ("gspo_cli/algorithm/calibration.py", "test_calibration test_family")
ACTOR_CRITIC = ("gspo_cli/algorithm/actor_critic.py", "test_actor_critic")
CRITIC = ("gspo_cli/training/critic.py", "test_actor_critic")
PREFERENCE = ("gspo_cli/algorithm/preference.py", "test_preference")
PAIRS = ("gspo_cli/training/pairs.py", "test_preference")
UPDATE = (
    "gspo_cli/training/update.py",
    "test_update test_passes test_schedule test_correction test_calibration test_old_logprobs "
    "test_actor_critic test_preference test_segments test_routing",
)
STRATEGY = ("gspo_cli/training/strategy.py", "test_update test_resume test_training")
COLLATOR = ("gspo_cli/training/collator.py", "test_update test_prefix_tree test_segments")
BATCH = ("gspo_cli/training/batch.py", "test_update test_segments test_prefix_tree test_actor_critic")
CREDIT = ("gspo_cli/training/credit.py", "test_advantages test_conversations_in_training test_shaped_rewards")
LOGPROBS = ("gspo_cli/policy/logprobs.py", "test_policy test_update")
POLICY = ("gspo_cli/policy/policy.py", "test_policy test_prefix_tree test_actor_critic")
OPTIMIZERS = ("gspo_cli/policy/optimizers.py", "test_update test_training test_quantization")
SAMPLING = ("gspo_cli/rollout/sampling.py", "test_rollout")

Change = tuple[str, str]
MUTANTS: dict[tuple[str, str], list[Change]] = {
    OBJECTIVE: [
        ("torch.where(action_mask, logprobs - old_logprobs, 0)", "logprobs - old_logprobs"),
        (
            "log_ratio.sum(dim=1, keepdim=True) / action_mask",
            "log_ratio.mean(dim=1, keepdim=True) / action_mask",
        ),
        ("return log_s.detach() + own", "return log_s + own"),
        ("return log_s.detach() + own", "return own"),
        ("difference.square() / 2", "difference.square()"),
        ("torch.expm1(-difference) + difference", "torch.expm1(difference) - difference"),
        (
            "torch.where(action_mask, logprobs - ref_logprobs, 0)",
            "torch.where(action_mask, ref_logprobs - logprobs, 0)",
        ),
        ("counts = [count for count in action_counts if count > 0]", "counts = list(action_counts)"),
        ("return float(max(1, sum(counts)))", "return float(max(1, len(counts)))"),
        ("length = max_completion_length if", "length = max(counts, default=1) if"),
        ("per_sequence / action_mask.sum(dim=1).clamp(min=1)", "per_sequence / action_mask.shape[1]"),
        ("if weights is None else per_sequence * weights", "if weights is None else per_sequence"),
        ("torch.where(action_mask, term, 0).sum(dim=1)", "term.sum(dim=1)"),
        ("loss = loss + algorithm.beta * penalty", "loss = loss - algorithm.beta * penalty"),
        ("loss = loss + algorithm.beta * penalty", "loss = loss + penalty"),
        ("loss = -aggregate(", "loss = aggregate("),
        ("return sequence_log_ratio(log_ratio, action_mask).squeeze(dim=1)", "return log_ratio.sum(dim=1)"),
        ("return log_ratio.sum(dim=1, keepdim=True)\n", "return log_ratio.mean(dim=1, keepdim=True)\n"),
        ("kl_penalty(old_logprobs.double(), logprobs", "kl_penalty(logprobs.detach().double(), logprobs"),
    ],
    GATES: [
        ("value.clamp(min=bottom, max=top)", "value.clamp(max=top)"),
        ("torch.where(clipped, weight, torch.where", "torch.where(clipped_high, weight, torch.where"),
        ("torch.where(clipped, weight, torch.where", "torch.where(clipped_low, weight, torch.where"),
        ("(value < low) & (advantages != 0)", "value < low"),
        ("(advantages < 0) & (value < low), (", "(advantages <= 0) & (value < low), ("),
        ("(advantages > 0) & (value > high)", "(advantages >= 0) & (value > high)"),
        ("(advantages < 0) & (value > bound)", "value > bound"),
        ("algorithm.clip_ratio_dual * advantages, weight", "advantages, weight"),
        ("return 4 / tau * torch.sigmoid", "return 4 * torch.sigmoid"),
        ("torch.sigmoid(tau * distance)", "torch.sigmoid(distance)"),
        (
            "advantages > 0, torch.full_like(advantages, tau_pos), tau_neg",
            "advantages < 0, torch.full_like(advantages, tau_pos), tau_neg",
        ),
        ("torch.where(high, log_band[1], token_log_ratio)", "token_log_ratio"),
        ("bounded.sum(dim=1, keepdim=True) / count", "bounded.sum(dim=1, keepdim=True)"),
        ("term = weight * torch.where(action_mask, logprobs, 0)", "term = weight * logprobs.exp()"),
    ],
    ADVANTAGES: [
        (
            "rewards = torch.where(valid, rewards, 0).double()\n    count = valid",
            "rewards = rewards.double()\n    count = valid",
        ),
        ("(valid.sum(dim=1) - 1).clamp(min=1)).sqrt()", "valid.sum(dim=1).clamp(min=1)).sqrt()"),
        ("everything = rewards[valid]", "everything = rewards.flatten()"),
        ("spread = spread.clamp(min=std_floor)", "spread = spread + std_floor"),
        ("centered * count / (count - 1)", "centered * (count - 1) / (count - 1)"),
        ("highest - lowest > ZERO_RANGE * size", "highest - lowest > ZERO_RANGE"),
        ("highest - lowest > ZERO_RANGE * size", "highest > lowest"),
        ("discount * to_go[:, :, turn + 1]", "to_go[:, :, turn + 1]"),
        ("start = limit * (1 - buffer)", "start = limit * buffer"),
        (
            "rewards - rewards.sum(dim=1, keepdim=True) / count, 0",
            "rewards - rewards.mean(dim=1, keepdim=True), 0",
        ),
    ],
    CORRECTION: [
        ("ratio.clamp(max=limit)", "ratio"),
        ("(ratio > limit) | (ratio < 1 / limit)", "(ratio > limit) | (ratio < 2 - limit)"),
        ("(ratio > limit) | (ratio < 1 / limit)", "ratio > limit"),
        ("return advantages * weights", "return advantages"),
    ],
    CALIBRATION: [
        ("(low | high) & action_mask", "low | high"),
        ("fraction * trained_tokens / max(1, len(bounded))", "fraction * trained_tokens"),
        ("min(widest_left, left)", "left"),
        ("max(NARROWEST, width)", "width"),
    ],
    ACTOR_CRITIC: [
        ("discount * lam * later", "lam * later"),
        ("delta + discount * lam * later", "delta + discount * later"),
        ("+ discount * following - values[step]", "+ following - values[step]"),
        ("following = values[step]\n", "following = 0.0\n"),
        ("error = torch.where(clipped, limited, error)", "error = limited"),
        ("clipped = limited > error", "clipped = limited < error"),
        ("return error / 2, ", "return error, "),
        ("spread = values.std().clamp(min=std_floor)", "spread = values.std(correction=0)"),
    ],
    CRITIC: [
        ("advantage + value\n", "advantage\n"),
        (
            "at = [values[tokens[i]] for i in begins]",
            "at = [values[tokens[i]] for i in [e - 1 for e in ends]]",
        ),
        ("[0.0] * (len(begins) - 1) + [sum(earned)]", "[sum(earned)] + [0.0] * (len(begins) - 1)"),
        ("= rate * self.config.algorithm.value.learning_rate", "= self.config.algorithm.learning_rate"),
        ('self.optimizer.load_state_dict(state["optimizer"])', "pass"),
        ("torch.nn.utils.clip_grad_norm_(parameters, self.config.training.max_grad_norm).item()", "1.0"),
    ],
    PREFERENCE: [
        ("difference - 1 / (2 * beta)", "difference - 1 / beta"),
        ("-beta * torch.sigmoid(-beta * difference)", "-torch.sigmoid(-beta * difference)"),
        (".argmin(dim=1", ".argmax(dim=1"),
        ("torch.where(has_spread(rewards, valid)[:, None], signs, 0.0)", "signs"),
    ],
    PAIRS: [
        ("= -2 * slope", "= -slope"),
        ("gained / micro.action_mask.sum(dim=1).clamp(min=1)", "gained"),
        (
            "token_log_ratio(logprobs.double(), micro.ref_logprobs",
            "token_log_ratio(logprobs.double(), 0 * logprobs",
        ),
    ],
    UPDATE: [
        (
            "old = logprobs.detach() if micro.old_logprobs is None else micro.old_logprobs",
            "old = logprobs.detach()",
        ),
        ("scheduled * self.rate_factor", "scheduled"),
        ("self.steps += 1", "pass"),
        ("peak * (step + 1) / warmup", "peak"),
        ("peak * (1 - progress)", "peak"),
        ("peak * (1 + math.cos(math.pi * progress)) / 2", "peak"),
        ("> limit * sum(", "> 1e9 * sum("),
        ("forward(*scored, with_entropy", "forward(*scored[:2], 1.0, with_entropy"),
        ("forward(*scored, reference=True", "forward(*scored[:2], 1.0, reference=True"),
        ("entropy[micro.action_mask].sum().item()", "entropy.sum().item() + 1"),
        ("int(micro.action_mask.sum())", "micro.action_mask.numel()"),
        ("self.strategy.drop_gradient()\n", "pass\n"),
        ("piece.weight * value", "value"),
        ("forced = micro.experts if replay else None", "forced = None"),
        ("max(1, min(self.collator.budget, largest) // 2)", "self.collator.budget // 2"),
        ("loss = loss + error", "loss = loss"),
        ("weighted(micro.advantages, weights", "weighted(micro.advantages, torch.ones_like(weights)"),
        ("error.abs().max().item()", "error.max().item()"),
    ],
    STRATEGY: [
        ("torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm).item()", "1.0"),
        ('group["lr"] = rate', "pass"),
        ("parameter.grad = torch.zeros_like(parameter)", "pass"),
        ("if math.isfinite(norm):", "if True:"),
        ("loss.backward()", "(2 * loss).backward()"),
    ],
    COLLATOR: [
        ("(algorithm.kl_in_loss or algorithm.has_critic or any(s.advantages))", "True"),
        ("(algorithm.kl_in_loss or algorithm.has_critic or any(s.advantages))", "any(s.advantages)"),
        (
            "counts, algorithm.aggregation, self.config.rollout.max_completion_length",
            "counts, algorithm.aggregation, 1",
        ),
        ("order.permutation(len(samples) // size)", "np.arange(len(samples) // size)"),
        (
            "np.asarray(sample.action_mask) for sample in micro.samples",
            "np.asarray([True] * sample.length) for sample in micro.samples",
        ),
    ],
    BATCH: [
        ("weight=1 / len(trained)", "weight=1"),
        ("self.trajectory.sampling_logprobs[self.span]", "self.trajectory.sampling_logprobs"),
        ("s.advantages * s.length if per_token", "[s.advantages[0]] + [0.0] * (s.length - 1) if per_token"),
    ],
    CREDIT: [
        ("trajectory.excluded is None and not cut", "not cut"),
        ("trajectory.excluded is None and not cut", "trajectory.excluded is None"),
        ("last + (reward - sum(trajectory.turn_rewards))", "last"),
        ("penalty * (t.finish_reason is not FinishReason.stop)", "penalty"),
    ],
    LOGPROBS: [
        ("logits if temperature == 1 else logits / temperature", "logits"),
        ("scaled = grad[part, None] / ctx.temperature", "scaled = grad[part, None]"),
        ("grad_bias += grad_logits.sum(dim=0)", "pass"),
        (
            "logits = linear(hidden.to(dtype), weight)",
            "logits = linear(hidden.bfloat16(), weight.bfloat16()).to(dtype)",
        ),
        ("log_normalizer[part] - probabilities", "-probabilities"),
    ],
    POLICY: [
        ("trained[:, 0] = False", "pass"),
        ("with as_reference(self.model):", "with nullcontext():"),
        (
            "token_ids, action_mask, temperature, False, rows)\n        if not isinstance",
            "token_ids, action_mask, 1.0, False, rows)\n        if not isinstance",
        ),
        ("found = tuple(each[rows.places] for each in found)", "found = (found[0][rows.places], *found[1:])"),
    ],
    OPTIMIZERS: [
        (
            '"betas": (training.adam_beta1, training.adam_beta2)',
            '"betas": (training.adam_beta2, training.adam_beta1)',
        ),
        ('"weight_decay": training.weight_decay', '"weight_decay": 0.0'),
    ],
    SAMPLING: [
        ("uniform[:, None].double() * mass", "uniform[:, None].double()"),
        ("right=True", "right=False"),
        ("kept[:, top_k:] = False", "kept[:, top_k + 1 :] = False"),
        ("kept = before < top_p", "kept = before + ordered < top_p"),
        ("(1 - mass.squeeze(dim=1))", "(0 * mass.squeeze(dim=1))"),
    ],
}
