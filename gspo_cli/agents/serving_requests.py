"""Requests whose sampling parameters are honored: in serving, not in training. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gspo_cli.agents.endpoint import EndpointServer
from gspo_cli.agents.requests import ChatRequest, RequestError, read_request

# what the engine does not do, each with the value that asks for nothing
UNSUPPORTED: Mapping[str, Any] = {
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "repetition_penalty": 1,
    "min_p": 0,
    "logit_bias": {},
    "top_logprobs": 0,
    "functions": [],
}
GREEDY_BELOW = 1e-3  # temperatures that leave the most likely token nearly all of the probability
HOTTEST = 2.0
SEEDS = range(-(2**63), 2**64)
STRANGER = "is not the key of this server; use the one that gspo-serve has printed"


@dataclass(frozen=True)
class AskedSampling:
    """The sampling parameters of a request; None where it gives none. `top_k` 0 is all tokens."""

    temperature: float | None
    top_p: float
    top_k: int
    seed: int | None


def serving_endpoint(port: int = 0) -> EndpointServer:
    """An endpoint whose requests are sampled as they ask; `port` 0 is any free one."""
    return EndpointServer(port=port, reads=read_honored, stranger=STRANGER)


def read_honored(body: Any) -> ChatRequest:
    """`read_request`, which also raises RequestError where a sampling parameter is out of range, or one that
    would have no effect."""
    request = read_request(body)
    for name, harmless in UNSUPPORTED.items():
        if body.get(name) not in (None, harmless):
            raise RequestError(name, "is not supported; leave it out")
    asked_sampling(request)
    return request


def asked_sampling(request: ChatRequest) -> AskedSampling:
    """The sampling that a request asks for. Raises RequestError where a value is out of range."""
    given = dict(request.sampling)
    temperature, top_p = given.get("temperature"), given.get("top_p", 1.0)
    top_k, seed = given.get("top_k", 0), given.get("seed")
    if temperature is not None and not (_is_number(temperature) and 0 <= temperature <= HOTTEST):
        raise RequestError("temperature", f"must be a number from 0 to {HOTTEST:g}")
    if not (_is_number(top_p) and 0 < top_p <= 1):
        raise RequestError("top_p", "must be a number above 0 and at most 1")
    if not (_is_number(top_k) and isinstance(top_k, int) and top_k >= -1):
        raise RequestError("top_k", "must be an integer above 0, or 0 for all tokens")
    if seed is not None and not (_is_number(seed) and isinstance(seed, int) and seed in SEEDS):
        raise RequestError("seed", "must be an integer of at most 64 bits")
    if temperature is not None and temperature < GREEDY_BELOW:
        temperature = 0.0
    return AskedSampling(temperature, float(top_p), max(0, top_k), seed)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
