"""`gspo-serve`: the endpoint of task=agent for a trained policy, so that an agent talks to it as it did in
training."""

from __future__ import annotations

import argparse
import errno
import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gspo_cli.commands.entry import run_command
from gspo_cli.commands.model_source import has_reward_object, model_parser, resolve, run_named
from gspo_cli.config.checks import override_key, require
from gspo_cli.config.extras import install
from gspo_cli.errors import UserError
from gspo_cli.launching.processes import INTERRUPTED
from gspo_cli.signals import Stopped, signals_handled_by

if TYPE_CHECKING:
    from gspo_cli.agents.endpoint import EndpointServer

DESCRIPTION = (
    "Serve the policy of a run, or any model, on this machine as an OpenAI-compatible endpoint, for\n"
    "development. In production use gspo-export and serve the exported folder with vLLM."
)
EXAMPLES = """examples:
  gspo-serve outputs/agent-smollm2-gspo/<run>
      the best checkpoint on port 8000; prints what to paste into the agent's terminal
  gspo-serve outputs/agent-smollm2-gspo/<run> --checkpoint initial --port 8001
      the policy before training beside it
  GSPO_SERVE_KEY=secret gspo-serve <run> --port 0 --temperature 0
      any free port, a key of your choice, and the most likely tokens where a request gives no temperature
  gspo-serve <model folder, adapter folder, GGUF file or hub id> rollout.max_completion_length=4096
      a model that no run has trained, with longer answers

requests:
  POST /v1/chat/completions and GET /v1/models; temperature, top_p, top_k, seed, max_tokens, stop, tools,
  tool_choice (auto or none), logprobs and stream are honored; anything else that would change the answer is
  refused. Without max_tokens an answer takes up to rollout.max_completion_length tokens, which for a model by
  itself is 1024. Any model name is accepted.
"""
KEY_VARIABLE = "GSPO_SERVE_KEY"
PORT, LARGEST_PORT = 8000, 65_535
ANSWER = "rollout.max_completion_length"
LONGEST_ANSWER = 1024  # tokens, for a model by itself
EXAMPLE = {"messages": [{"role": "user", "content": "Hi"}]}


def main() -> None:
    """Entry point of `gspo-serve`."""
    run_command("gspo-serve", serve_command)


def serve_command() -> int:
    """Serve what the command line names until a signal ends it."""
    arguments = parse()
    try:
        from gspo_cli.agents.serving_requests import serving_endpoint
    except ImportError as error:
        raise UserError(f"the endpoint needs packages ({error}); {install('agents')}") from error
    instead = ["reward=null"] if has_reward_object(Path(arguments.model)) else []
    typed = set(map(override_key, arguments.overrides))
    if run_named(arguments.model, arguments.overrides) is None and ANSWER not in typed:
        instead.append(f"{ANSWER}={LONGEST_ANSWER}")
    config, source, adapter = resolve(arguments.model, arguments.checkpoint, [*instead, *arguments.overrides])
    endpoint = serving_endpoint(arguments.port)
    _bind(endpoint, arguments.port)  # before a model is loaded

    from gspo_cli.agents.serving import Defaults, PolicyService
    from gspo_cli.training.session import load_trained, set_threads, transformers_engine

    print(f"gspo-serve: loading {source}", file=sys.stderr, flush=True)
    set_threads(config)
    policy = load_trained(config, source, adapter)
    engine = transformers_engine(config, policy, None, full=1.0)  # the run's room may be another machine's
    defaults = Defaults(arguments.temperature, config.rollout.max_completion_length)
    service = PolicyService(engine, policy.chat, endpoint, defaults)
    key = service.open(arguments.key)
    try:
        _start(endpoint, arguments.port)
        print(to_paste(endpoint.url, key, endpoint.model, defaults.max_tokens), flush=True)
        service.run()
    except Stopped:
        print("gspo-serve: stopped", file=sys.stderr)
    finally:
        with signals_handled_by(at_once):
            endpoint.stop()
    return 0


def parse() -> argparse.Namespace:
    """The command line. Raises UserError on values that cannot be."""
    parser = model_parser("gspo-serve", DESCRIPTION, EXAMPLES)
    parser.add_argument(
        "--port", type=int, default=PORT, help=f"port on 127.0.0.1, {PORT} by default; 0 is any free one"
    )
    parser.add_argument(
        "--key",
        default=os.environ.get(KEY_VARIABLE),
        help=f"API key that requests must carry, which other users of this machine can see in its processes; "
        f"the environment variable {KEY_VARIABLE} hides it; a random one by default",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        help="of requests that give none: 1 (default), as OpenAI has it; 0 takes the most likely token",
    )
    arguments = parser.parse_intermixed_args()  # overrides may stand after flags
    port, key, temperature = arguments.port, arguments.key, arguments.temperature
    require(0 <= port <= LARGEST_PORT, f"--port {port}: give a number from 0 to {LARGEST_PORT}")
    require(0 <= temperature <= 2, f"--temperature {temperature}: give a number from 0 to 2")
    readable = key is None or (key.isascii() and key.isprintable() and key != "" and " " not in key)
    require(
        readable,
        f"--key (or {KEY_VARIABLE}): give printable ASCII characters without spaces, or leave it out for a "
        "random key",
    )
    return arguments


def to_paste(url: str, key: str, model: str, longest: int) -> str:
    """What somebody needs to talk to the endpoint, as a shell takes it."""
    values = {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": key, "OPENAI_MODEL": model}
    body = json.dumps({"model": model} | EXAMPLE)
    headers = [f"Authorization: Bearer {key}", "Content-Type: application/json"]
    curl = [
        "curl",
        f"{url}/chat/completions",
        *(part for text in headers for part in ("-H", text)),
        "-d",
        body,
    ]
    lines = [
        *(f"export {name}={shlex.quote(value)}" for name, value in values.items()),
        shlex.join(curl),
        "",
        f"Serving for development; answers take up to {longest} tokens unless a request gives max_tokens.",
        "In production: gspo-export and vLLM. Ctrl-C ends it.",
    ]
    return "\n".join(lines)


def _bind(endpoint: EndpointServer, port: int) -> None:
    try:
        endpoint.bind()
    except OSError as error:
        raise _refused(error, port) from error


def _start(endpoint: EndpointServer, port: int) -> None:
    try:
        endpoint.start()
    except OSError as error:  # somebody else took the port at the same time
        raise _refused(error, port) from error


def _refused(error: OSError, port: int) -> UserError:
    if error.errno == errno.EADDRINUSE:
        other = port + 1 if port < LARGEST_PORT else PORT
        return UserError(f"--port {port}: is taken; type --port {other}, or --port 0 for any free one")
    return UserError(f"--port {port}: cannot be used ({error.strerror}); type --port {PORT}, or --port 0")


def at_once(number: int) -> None:
    """A handler of a second Ctrl-C, which waits for nothing."""
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
