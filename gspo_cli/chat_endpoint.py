"""Chat completions of an OpenAI-compatible server: a hosted model, or a local one behind vLLM or
llama.cpp."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from gspo_cli.errors import UserError

if TYPE_CHECKING:
    import httpx

LONGEST_WAIT = 60.0  # seconds; longest Retry-After header that is honored
SHOWN = 200  # characters of a server's answer that an error quotes


class EndpointError(Exception):
    """The server was unreachable, refused the request, or did not return a completion."""


class ChatEndpoint:
    """The server at `url` (as in http://localhost:8000/v1) and one of its models.

    The key is read from the environment variable `api_key_variable` when it is needed; a local server needs
    none. `timeout` is for each attempt, `retries` come after the first one, and the wait between them starts
    at `backoff` seconds and doubles. At most `concurrency` requests are in flight per event loop."""

    def __init__(
        self,
        url: str,
        model: str,
        api_key_variable: str = "OPENAI_API_KEY",
        temperature: float = 0.0,
        max_tokens: int = 512,
        timeout: float = 60.0,
        retries: int = 3,
        concurrency: int = 16,
        backoff: float = 1.0,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise UserError(f"url={url}: is not a valid address; give one like http://localhost:8000/v1")
        self.url = url.rstrip("/")
        self.model = model
        self.api_key_variable = api_key_variable
        self.temperature, self.max_tokens = temperature, max_tokens
        self.timeout, self.retries, self.concurrency = timeout, retries, concurrency
        self.backoff = backoff
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient] = WeakKeyDictionary()

    def request(self, messages: Sequence[Mapping[str, str]]) -> dict[str, Any]:
        """The body that asks for a completion of `messages`."""
        return {
            "model": self.model,
            "messages": [dict(message) for message in messages],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        }

    async def complete(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The model's next message. Raises EndpointError if every attempt fails."""
        import httpx

        body = json.dumps(self.request(messages)).encode()  # ASCII: lone surrogates survive
        reason, wait = "", self.backoff
        for attempt in range(self.retries + 1):
            if attempt:
                await asyncio.sleep(wait)
            wait = self.backoff * 2**attempt
            try:
                response = await self._client().post(
                    f"{self.url}/chat/completions", content=body, headers=self._headers()
                )
            except httpx.InvalidURL as error:
                raise UserError(f"url={self.url}: is not a valid address ({error})") from error
            except httpx.HTTPError as error:
                reason = f"{type(error).__name__} {error}".strip()
                continue
            if response.status_code == 200:
                return self._content(response.text)
            reason = f"status {response.status_code}: {self.quoted(response.text)}"
            if response.status_code != 429 and response.status_code < 500:
                raise self._error(reason)
            wait = _asked_for(response.headers.get("retry-after", ""), wait)
        raise self._error(f"{reason} ({self.retries + 1} attempts)")

    async def close(self) -> None:
        """Close the connections of the running loop."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()

    def _client(self) -> httpx.AsyncClient:
        """The client of the running loop: connections cannot change loops."""
        import httpx

        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            limits = httpx.Limits(max_connections=self.concurrency)
            timeout = httpx.Timeout(
                self.timeout, pool=None
            )  # requests may wait for a connection without limit
            self._clients[loop] = httpx.AsyncClient(timeout=timeout, limits=limits)
        return self._clients[loop]

    def _headers(self) -> dict[str, str]:
        key = self._key()
        if not (key.isascii() and key.isprintable()):  # else the HTTP library shows it in its error
            raise self._error(
                f"the key in {self.api_key_variable} has characters that are not allowed in a key"
            )
        authorization = {"Authorization": f"Bearer {key}"} if key else {}
        return {"Content-Type": "application/json", **authorization}

    def _content(self, text: str) -> str:
        try:
            content = json.loads(text)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise self._error(f"no choices[0].message.content in: {self.quoted(text)}") from error
        if not isinstance(content, str):
            raise self._error(f"choices[0].message.content is not a string in: {self.quoted(text)}")
        return self._without_key(content)

    def _key(self) -> str:
        return os.environ.get(self.api_key_variable, "").strip()

    def quoted(self, text: str) -> str:
        """The beginning of what a server answered. The key is removed first: some servers echo it, and a cut
        through the middle would leave a part of it."""
        return self._without_key(text)[:SHOWN]

    def _without_key(self, text: str) -> str:
        key = self._key()
        return text.replace(key, "***") if key else text

    def _error(self, reason: str) -> EndpointError:
        return EndpointError(f"{self.url}: {self._without_key(' '.join(reason.split()))}")


def _asked_for(header: str, otherwise: float) -> float:
    """Seconds of a Retry-After header; `otherwise` where it is absent or a date."""
    header = header.strip()
    return min(float(header), LONGEST_WAIT) if header.isascii() and header.isdigit() else otherwise
