"""The model being trained: log-probabilities under it and its reference, and its weights on disk.

Shapes: B sequences, T tokens, right-padded; D hidden size. The one shift between logits and tokens is here:
the log-probability of token t comes from the hidden state at t - 1."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gspo_cli.policy.chat import ChatFormat
from gspo_cli.policy.logprobs import Head, LinearLogprobs, linear_logits
from gspo_cli.policy.lora import (
    REFERENCE,
    TRAINED,
    adapter_weights,
    add_reference,
    as_reference,
    copy_to_reference,
    has_reference,
    set_reference,
)
from gspo_cli.policy.packed import PackedRows
from gspo_cli.policy.routing import Routing, predicting
from gspo_cli.policy.soundness import require_linear_logits
from gspo_cli.policy.tree_attention import block_mask, has_tree_attention
from gspo_cli.policy.value_head import ValueHead
from gspo_cli.policy.weights import full_shape, gathered, parameter_count


class Policy(nn.Module):
    """A causal language model with its tokenizer."""

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.autocast = autocast
        rows = full_shape(next(self.causal_model.get_input_embeddings().parameters()))[0]
        self.chat = ChatFormat(tokenizer, _generation_stop_ids(self.causal_model), rows)
        self._frozen_reference: PreTrainedModel | None = None
        self._heads: dict[int, Head] = {}
        self.model.eval()
        with gathered(self.causal_model.parameters()):
            require_linear_logits(self.causal_model)
            self.routing = Routing(self.causal_model)

    @property
    def causal_model(self) -> PreTrainedModel:
        """The model without its adapter wrapper (the adapter's layers are still part of it)."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    @property
    def has_adapter(self) -> bool:
        """Whether LoRA weights are trained instead of the full weights."""
        return isinstance(self.model, PeftModel)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.causal_model.device

    @property
    def max_positions(self) -> int:
        """Longest sequence that the model supports, in tokens."""
        return max_positions(self.causal_model)

    def heads(self) -> list[nn.Linear]:
        """Output layers whose weights `forward` reads: the model's, and a frozen reference's."""
        models = [self.causal_model, self._frozen_reference]
        return [model.get_output_embeddings() for model in models if model is not None]

    def head(self, causal: PreTrainedModel) -> Head:
        """The output layer of `causal`, the policy's model or its reference."""
        layer = causal.get_output_embeddings()
        return self._heads.setdefault(id(layer), Head(layer))

    def trainable(self) -> list[nn.Parameter]:
        """Parameters that the optimizer updates."""
        return [p for p in self.model.parameters() if p.requires_grad]

    @property
    def num_parameters(self) -> int:
        """Weights of the model and of the adapter that is trained; a reference has none of its own."""
        return parameter_count(self.model, leave_out=f".{REFERENCE}.")

    def forward(
        self,
        token_ids: Tensor,
        action_mask: Tensor,
        temperature: float,
        with_entropy: bool = False,
        reference: bool = False,
        rows: PackedRows | None = None,
        value_head: ValueHead | None = None,
        values_only: bool = False,
    ) -> tuple[Tensor, ...]:
        """token_ids, action_mask (B, T) -> logprobs and entropy (B, T) in fp32, 0 where `action_mask` is
        false, and with a `value_head` its values (B, T), or those alone; with `reference` logprobs of the
        model as it was before training. `rows` is what to compute them from, where sequences share their
        beginnings.

        Padding is on the right, where causal attention never looks, so plain sequences need no mask."""
        if reference:
            return self._reference(token_ids, action_mask, temperature, rows)
        scored = (token_ids, action_mask, temperature, with_entropy, rows, value_head, values_only)
        return self._score(self.causal_model, *scored)

    @torch.no_grad()
    def _reference(
        self, token_ids: Tensor, action_mask: Tensor, temperature: float, rows: PackedRows | None
    ) -> tuple[Tensor, ...]:
        if self._frozen_reference is not None:
            return self._score(self._frozen_reference, token_ids, action_mask, temperature, False, rows)
        if not isinstance(self.model, PeftModel):
            raise RuntimeError("the policy has no reference: call keep_reference first")
        with as_reference(self.model):
            return self._score(self.causal_model, token_ids, action_mask, temperature, False, rows)

    def keep_reference(self, model: PreTrainedModel) -> None:
        """Use `model` as the frozen reference. Not needed with LoRA: its reference is the model without the
        adapter, or with the adapter that training continues."""
        self._frozen_reference = model.eval().requires_grad_(False)

    def keep_reference_adapter(self, folder: Path) -> None:
        """Use the model with the adapter in `folder` as the reference, while another is trained."""
        assert isinstance(self.model, PeftModel)
        add_reference(self.model, folder)

    @torch.no_grad()
    def refresh_reference(self) -> None:
        """Make the present weights those of the reference."""
        if isinstance(self.model, PeftModel):
            copy_to_reference(self.model)
            return
        assert self._frozen_reference is not None
        pairs = zip(self._frozen_reference.parameters(), self.causal_model.parameters(), strict=True)
        for theirs, mine in pairs:
            theirs.copy_(mine)

    def reference_weights(self) -> dict[str, Tensor]:
        """Copies of the weights of the reference, of which a checkpoint of a refreshed one consists."""
        if isinstance(self.model, PeftModel):
            return adapter_weights(self.model, REFERENCE)
        assert self._frozen_reference is not None
        return {name: p.detach().cpu().clone() for name, p in self._frozen_reference.named_parameters()}

    @torch.no_grad()
    def restore_reference(self, weights: dict[str, Tensor]) -> None:
        """Set the reference to what `reference_weights` returned."""
        if isinstance(self.model, PeftModel):
            set_reference(self.model, weights)
            return
        assert self._frozen_reference is not None
        for name, parameter in self._frozen_reference.named_parameters():
            parameter.copy_(weights[name])

    @property
    def reference_kind(self) -> str:
        """What the reference is, in words."""
        if not isinstance(self.model, PeftModel):
            return "frozen copy"
        return "adapter as it was" if has_reference(self.model) else "adapter off"

    def next_token_logits(self, hidden: Tensor, temperature: float) -> Tensor:
        """fp32 logits for sampling from last hidden states. (B, D) -> (B, V)"""
        head = self.head(self.causal_model)
        with torch.autocast(hidden.device.type, enabled=False):  # as in training the product is fp32
            return linear_logits(hidden, head.weight, head.bias, temperature)

    def autocasting(self) -> torch.autocast | nullcontext:
        """Matrix products in bf16 over fp32 weights, where full weights are trained in bf16 precision."""
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast)

    @contextmanager
    def updating(self) -> Iterator[None]:
        """Train mode within the block, which gradient checkpointing needs; eval mode otherwise.

        In train mode checkpointing would disable the key-value cache of generation. Dropout is always 0."""
        self.model.train()
        try:
            yield
        finally:
            self.model.eval()

    def save(self, folder: Path) -> None:
        """Write adapter or full weights and the tokenizer, loadable with `from_pretrained`."""
        if isinstance(self.model, PeftModel):
            # no embeddings: peft would look for the base's own files, on the hub too, to see if they changed
            self.model.save_pretrained(folder, selected_adapters=[TRAINED], save_embedding_layers=False)
        else:
            self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    @torch.no_grad()
    def load_weights(self, folder: Path) -> None:
        """Replace the weights by those that `save` wrote."""
        if isinstance(self.model, PeftModel):
            set_peft_model_state_dict(self.model, load_peft_weights(folder, device="cpu"))
        else:
            saved = type(self.model).from_pretrained(folder, dtype=self.model.dtype)
            self.model.load_state_dict(saved.state_dict())

    def _score(
        self,
        causal: PreTrainedModel,
        token_ids: Tensor,
        action_mask: Tensor,
        temperature: float,
        with_entropy: bool,
        rows: PackedRows | None,
        value_head: ValueHead | None = None,
        values_only: bool = False,
    ) -> tuple[Tensor, ...]:
        trained = action_mask.clone()
        trained[:, 0] = False  # nothing precedes the first token
        head = self.head(causal)
        with self.autocasting():
            if rows is None:
                hidden = causal.base_model(
                    input_ids=token_ids, use_cache=False
                ).last_hidden_state  # (B, T, D)
                hidden, targets = hidden[predicting(trained)], token_ids[trained]
            else:
                hidden = self._packed(causal, rows)[rows.predictors]
                targets = rows.targets
        found: tuple[Tensor, ...] = ()
        if not values_only:
            found = LinearLogprobs.apply(hidden, head.weight, head.bias, targets, temperature, with_entropy)
        if value_head is not None:
            found = (*found, value_head(hidden))
        if rows is not None:
            found = tuple(each[rows.places] for each in found)
        return tuple(
            torch.zeros(trained.shape, dtype=each.dtype, device=each.device).masked_scatter(trained, each)
            for each in found
        )

    def _packed(self, causal: PreTrainedModel, rows: PackedRows) -> Tensor:
        """Last hidden state of each node. -> (R * L, D)"""
        return causal.base_model(
            input_ids=rows.token_ids,
            position_ids=rows.positions,
            attention_mask=block_mask(rows.ends)
            if has_tree_attention(causal)
            else rows.attention_bias(self.autocast or causal.dtype),
            use_cache=False,
        ).last_hidden_state.flatten(end_dim=1)


def max_positions(causal: PreTrainedModel) -> int:
    """Longest sequence that a model supports, in tokens."""
    return getattr(causal.config.get_text_config(), "max_position_embeddings", None) or 2**31


def _generation_stop_ids(model: PreTrainedModel) -> list[int]:
    config = model.generation_config
    stop = None if config is None else config.eos_token_id
    return [] if stop is None else [stop] if isinstance(stop, int) else list(stop)
