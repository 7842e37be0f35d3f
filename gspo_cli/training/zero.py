"""DeepSpeed ZeRO as a `Strategy`: optimizer states (1), gradients (2) and weights (3) sharded over ranks.

Checkpoints are those of one process: DeepSpeed's own files are tied to a stage and a number of ranks; full
tensors are not."""

from __future__ import annotations

import logging
import math
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from gspo_cli.config.choices import Device, Precision
from gspo_cli.config.schema import RunConfig
from gspo_cli.launching.processes import require_deepspeed
from gspo_cli.policy.optimizers import make_optimizer
from gspo_cli.policy.policy import Policy
from gspo_cli.policy.weights import gathered, zero_init
from gspo_cli.training.batch import collate
from gspo_cli.training.process_group import ProcessGroup
from gspo_cli.training.strategy import OptimizerState, Scores

MOMENTS = ("exp_avg", "exp_avg_sq")


class ZeroStrategy:
    """`Strategy` over DeepSpeed's engine. Its gradients are means over ranks, ours are sums of shares."""

    collective = True

    def __init__(self, policy: Policy, config: RunConfig, ranks: ProcessGroup) -> None:
        self.policy, self.ranks = policy, ranks
        self.shards_weights = config.hardware.zero_stage == 3
        self._parameters = policy.trainable()
        deepspeed = imported(config.hardware.device)
        self._deepspeed = deepspeed
        self.engine, *_ = deepspeed.initialize(
            model=policy,
            optimizer=make_optimizer(self._parameters, config),
            config=engine_config(config, policy.causal_model.config.get_text_config().hidden_size),
        )
        policy.eval()
        if self.shards_weights:
            for head in policy.heads():  # used by the policy, outside of their own module
                for parameter in head.parameters():
                    deepspeed.zero.register_external_parameter(policy, parameter)

    def forward(self, token_ids: Tensor, action_mask: Tensor, temperature: float, **options: Any) -> Scores:
        """See `Policy.forward`."""
        return self.engine(token_ids, action_mask, temperature, **options)

    def backward(self, loss: Tensor) -> None:
        """See `Strategy`."""
        self.engine.backward(loss * self.ranks.size)

    def drop_gradient(self) -> None:
        """Raises NotImplementedError: no rank can leave a collective operation alone."""
        raise NotImplementedError("a gradient that is sharded over ranks cannot be dropped by one of them")

    def step(self, rate: float) -> float:
        """See `Strategy`."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        self.engine.step()
        if self.engine.optimizer.overflow:
            return math.inf
        return float(self.engine.get_global_grad_norm())

    @contextmanager
    def generating(self) -> Iterator[None]:
        """Gathered weights on every rank, without the hooks that shard them: ranks need not stay in step."""
        if not self.shards_weights:
            yield
            return
        offload = self.engine.optimizer.parameter_offload
        with gathered(self.policy.model.parameters()):
            for parameter in self.policy.parameters():
                parameter.ds_active_sub_modules.clear()  # type: ignore[attr-defined]  # DeepSpeed's
            offload._remove_module_hooks()
            for hooks in (offload.forward_hooks, offload.backward_hooks):
                hooks.clear()  # DeepSpeed does not do this and would keep those of every generation
            try:
                yield
            finally:
                offload.setup_zero_stage3_hooks()

    def save(self, folder: Path) -> OptimizerState:
        """See `Strategy`."""
        needed = self._parameters if self.policy.has_adapter else self.policy.model.parameters()
        with gathered(needed):
            if self.ranks.is_first:
                self.policy.save(folder)
        # the first rank may write for a long time; DeepSpeed's own groups have a shorter timeout
        self.ranks.wait()
        return self._optimizer_state()

    def restore_optimizer(self, state: OptimizerState) -> None:
        """See `Strategy`."""
        if not state["state"]:  # from before the first step
            for own in self._inner.state.values():
                for value in own.values():
                    value.zero_()
            return
        # a step of rate 0 on a zero gradient changes no weight and makes the moments
        batch = collate([], self.policy.chat.pad_id, self.policy.device)
        with self.policy.updating():
            self.backward(self.forward(batch.token_ids, batch.action_mask, 1.0)[0].sum())
        self.step(0.0)
        for index, parameter in enumerate(self._parameters):
            for moment in MOMENTS:
                value = state["state"][index][moment].to(parameter.device)
                self._deepspeed.utils.safe_set_full_optimizer_state(parameter, value, moment)
        for own in self._inner.state.values():
            own["step"].copy_(state["state"][0]["step"])

    def restore_weights(self, folder: Path) -> None:
        """See `Strategy`."""
        with gathered(self.policy.model.parameters(), modified=True):
            self.policy.load_weights(folder)
        for parameter in self._parameters:
            with gathered([parameter]):
                value = parameter.detach().float().clone()
            self._deepspeed.utils.safe_set_full_fp32_param(parameter, value)

    @property
    def _inner(self) -> torch.optim.Optimizer:
        return self.engine.optimizer.optimizer

    def _optimizer_state(self) -> OptimizerState:
        """As AdamW's own state_dict over the trainable parameters; on the first rank."""
        steps = [own["step"] for own in self._inner.state.values() if "step" in own]
        state: dict[int, dict[str, Tensor]] = {}
        for index, parameter in enumerate(self._parameters if steps else []):
            moments = {
                moment: self._deepspeed.utils.safe_get_full_optimizer_state(parameter, moment)
                for moment in MOMENTS
            }
            if self.ranks.is_first:
                state[index] = {
                    "step": steps[0].clone(),
                    **{name: value.to("cpu") for name, value in moments.items()},
                }
        group = {key: value for key, value in self._inner.param_groups[0].items() if key != "params"}
        return {"state": state, "param_groups": [{**group, "params": list(range(len(self._parameters)))}]}


def engine_config(config: RunConfig, hidden_size: int) -> dict[str, Any]:
    """DeepSpeed's configuration of a run. Precision stays ours: fp32 trained weights, bf16 frozen ones."""
    hardware = config.hardware
    zero: dict[str, Any] = {"stage": hardware.zero_stage}
    if hardware.zero_stage == 3:
        zero["stage3_param_persistence_threshold"] = 10 * hidden_size  # norms and biases are not sharded
    if hardware.offload:
        zero["offload_optimizer"] = {"device": "cpu"}
        if hardware.zero_stage == 3:
            zero["offload_param"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,  # we call step explicitly
        "gradient_clipping": config.training.max_grad_norm,
        "zero_allow_untested_optimizer": True,
        # DeepSpeed's own optimizer is compiled on first use, which takes minutes
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
        "zero_optimization": zero,
    }


def sharded_loading(config: RunConfig) -> AbstractContextManager[None]:
    """A block in which `from_pretrained` shards weights over the ranks as it reads them (stage 3)."""
    if config.hardware.zero_stage < 3:
        return nullcontext()
    imported(config.hardware.device)
    settings = engine_config(config, config.model.shape.hidden_size)
    if config.hardware.precision is Precision.bf16 and config.model.use_lora:
        settings["bf16"] = {"enabled": True}  # the dtype in which frozen weights are sharded
    return zero_init(settings)


def imported(device: Device) -> ModuleType:
    """DeepSpeed, set to this device and quiet. Raises UserError if it is not installed."""
    os.environ["DS_ACCELERATOR"] = device.value
    require_deepspeed()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings from its imports
        import deepspeed
        import deepspeed.comm.torch
    if device is Device.cpu:
        # on first use it would compile an operator for minutes, and hang where a killed build left its lock;
        # the attribute deepspeed.comm.torch is the real torch, the module is found by its name alone
        vars(sys.modules["deepspeed.comm.torch"])["build_shm_op"] = lambda: None
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # DeepSpeed calls collective operations by names that torch 2.13 deprecates
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.", category=FutureWarning)
    return deepspeed
