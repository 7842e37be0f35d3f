"""What is checked of a loaded model before it is trained: all of its weights came from its files, all are
finite, and its logits are its output layer's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from gspo_cli.errors import FOREIGN, UserError, as_exception, is_out_of_memory
from gspo_cli.policy.logprobs import linear_logits

PROBE_IDS = 4  # the first tokens of the vocabulary
# size that the largest logit of the probe gets: soft caps are below it and do nothing to small ones
PROBE_LOGIT = 1000.0
# settings of a model that change its logits after the output layer, as the families name them
LOGIT_SETTINGS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")
FIX = "choose another model"


def require_complete(base: str, report: Mapping[str, Any]) -> None:
    """Raise UserError if weights of the model at `base` were not in its files, or had another shape there:
    they are random. `report` is the loader's."""
    wrong = [(str(key), "is not in its files") for key in sorted(report["missing_keys"])]
    wrong += [(str(key[0]), "has another shape in its files") for key in sorted(report["mismatched_keys"])]
    if wrong:
        key, what = wrong[0]
        more = f", as are {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise UserError(
            f"model.name={base}: the weight {key} {what} and would be random{more}; give a folder with all "
            "weights of a model that writes text (a causal language model)"
        )


def require_finite(model: nn.Module, base: str) -> None:
    """Raise UserError if a weight is infinite or not a number. Weights in fewer bits are skipped."""
    for name, parameter in model.named_parameters():
        stored = getattr(parameter, "ds_tensor", parameter)  # this rank's shard under ZeRO-3
        if stored.is_floating_point() and stored.itemsize > 1 and not torch.isfinite(stored).all():
            count = int((~torch.isfinite(stored)).sum())
            raise UserError(
                f"model.name={base}: {count:,} of {stored.numel():,} values of the weight {name} are "
                "infinite or not a number; its files are damaged: get them anew, or give another checkpoint"
            )


@torch.no_grad()
def require_linear_logits(causal: PreTrainedModel) -> None:
    """Raise UserError unless logits are the output layer's product with the last hidden state, at any size.

    Scoring and sampling compute them so; a soft cap hardly moves small logits, hence the probe makes them
    large."""
    name, head = type(causal).__name__, causal.get_output_embeddings()
    if causal.base_model is causal:
        raise UserError(f"model.name: {name} has no part without the output layer; {FIX}")
    if type(head) is not nn.Linear:
        raise UserError(
            f"model.name: the output layer of {name} is no linear one ({type(head).__name__}); {FIX}"
        )
    ids = torch.arange(PROBE_IDS, device=causal.device)[None] % head.weight.shape[0]
    try:
        hidden = causal.base_model(input_ids=ids, use_cache=False).last_hidden_state
        small = linear_logits(hidden, head.weight, head.bias, 1.0)
        factor = PROBE_LOGIT / small.abs().max().clamp(min=1e-3).item()
        logits = _logits(causal, ids, factor).to(small.dtype)
    except FOREIGN as error:  # the code of any architecture
        found = as_exception(error)
        if is_out_of_memory(found):
            raise
        reason = " ".join(str(found).split())[:200]
        raise UserError(f"model.name: {name} cannot be run on token ids alone ({reason}); {FIX}") from error
    if not torch.isfinite(small).all():
        raise UserError(
            f"model.name: the logits of {name} are infinite or not a number; its weights are damaged, or too "
            "large for hardware.precision"
        )
    ours = linear_logits(hidden * factor, head.weight, head.bias, 1.0)
    if not torch.allclose(logits, ours, rtol=2e-2, atol=2e-2 * PROBE_LOGIT):
        keys = ", ".join(_logit_settings(causal.config)) or "soft cap or scale"
        raise UserError(
            f"model.name: {name} changes its logits after the output layer ({keys}), which is not "
            f"supported; {FIX}"
        )


def _logits(causal: PreTrainedModel, ids: Tensor, factor: float) -> Tensor:
    """The model's own logits for last hidden states that are `factor` times as large."""

    def enlarge(module: nn.Module, given: tuple[Any, ...], output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state * factor
        return output

    hook = causal.base_model.register_forward_hook(enlarge)
    try:
        return causal(input_ids=ids, use_cache=False).logits
    finally:
        hook.remove()


def _logit_settings(config: PreTrainedConfig) -> list[str]:
    """The settings of LOGIT_SETTINGS that do something, as `key=value`."""
    text = config.get_text_config()
    found = {key: getattr(text, key, None) for key in LOGIT_SETTINGS}
    return [f"{key}={value}" for key, value in found.items() if value not in (None, 1.0)]
