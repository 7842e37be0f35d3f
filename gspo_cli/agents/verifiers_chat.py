"""The agent of environments of the package verifiers that bring none: a loop of chat completions and tool
calls, in this process.

The package's own agents are programs, each of which it installs and starts for a conversation."""

from __future__ import annotations

import json
import sys
from contextlib import AsyncExitStack
from typing import Any

import httpx
import verifiers.v1 as vf
from openai import AsyncOpenAI, BadRequestError
from verifiers.v1.dialects.chat import message_to_wire
from verifiers.v1.harnesses.utils.compaction import bound_tool_message
from verifiers.v1.harnesses.utils.mcp import call_mcp, connect_mcp

from gspo_cli.agents.requests import TOO_LONG, TOO_MANY

__all__ = ["ChatHarness"]

CHAT = "gspo_chat"  # what the package calls it
LIMITS = (TOO_LONG, TOO_MANY)


class ChatConfig(vf.HarnessConfig):
    """Its settings: those that every agent of the package has."""

    id: str = CHAT


class ChatHarness(vf.Harness[ChatConfig]):
    """Answers until the policy calls no tool, or a limit of the run or of the environment is reached."""

    APPENDS_SYSTEM_PROMPT = True
    SUPPORTS_MCP = True
    SUPPORTS_RESUME = True
    SUPPORTS_TOOL_INTERCEPTION = True
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    async def launch(
        self,
        ctx: vf.ModelContext,
        trace: vf.Trace,
        runtime: vf.Runtime,
        endpoint: str,
        secret: str,
        mcp_urls: dict[str, str],
        data: vf.TaskData,
        tool_interception_url: str | None = None,
    ) -> vf.ProgramResult:
        """One turn of the agent, with its tool calls, after all that was said so far."""
        spec = {name: {"url": url, "timeout": self.config.tool_timeout} for name, url in mcp_urls.items()}
        async with AsyncExitStack() as stack:
            http = await stack.enter_async_context(httpx.AsyncClient(timeout=None, trust_env=False))
            client = AsyncOpenAI(base_url=endpoint, api_key=secret, max_retries=0, http_client=http)
            schemas, places, servers = await connect_mcp({"mcpServers": spec}, stack)
            tools = {"tools": schemas} if schemas else {}
            messages = self._opening(data)
            while True:
                try:
                    found = await client.chat.completions.create(model=ctx.model, messages=messages, **tools)
                except BadRequestError as error:
                    if any(limit in str(error) for limit in LIMITS):
                        break
                    raise
                message = found.choices[0].message
                messages.append(message.model_dump(exclude_none=True))
                if not message.tool_calls:
                    break
                for call in message.tool_calls:
                    said = {"role": "tool", "tool_call_id": call.id, "name": call.function.name}
                    denied = await _denied(http, tool_interception_url, secret, call)
                    content = await _result(call.function, places, servers) if denied is None else ""
                    messages.append(bound_tool_message(denied or said | {"content": content}))
        return vf.ProgramResult(exit_code=0, stdout="", stderr="")

    def _opening(self, data: vf.TaskData) -> list[dict[str, Any]]:
        system, prompt = self.resolve_prompt(data)
        said = [] if system is None else [{"role": "system", "content": system}]
        if isinstance(prompt, str):
            return [*said, {"role": "user", "content": prompt}]
        return [*said, *(message_to_wire(message) for message in prompt or ())]


async def _denied(http: httpx.AsyncClient, url: str | None, secret: str, call: Any) -> dict[str, Any] | None:
    """What the environment says in place of a call that it denies; None where it is to be made. Raises
    RuntimeError where the environment ends the conversation."""
    if url is None:
        return None
    asked = {
        "tool_call_id": call.id,
        "name": call.function.name,
        "arguments": json.loads(call.function.arguments),
    }
    answer = await http.post(url, headers={"Authorization": f"Bearer {secret}"}, json=asked)
    answer.raise_for_status()
    decision = answer.json()
    if decision["action"] == "stop":
        raise RuntimeError(decision["reason"])
    return dict(decision["message"]) if decision["action"] == "deny" else None


async def _result(function: Any, places: dict[str, Any], servers: dict[str, Any]) -> Any:
    if function.name not in places:
        return f"error: there is no tool {function.name}; the tools are {', '.join(places) or 'none'}"
    return await call_mcp(servers, places, function.name, json.loads(function.arguments))


# the package finds its plug-ins as top-level modules
sys.modules.setdefault(CHAT, sys.modules[__name__])
