"""The endpoint that agents talk to: chat completions on the loopback interface, a key for each conversation.

The server has a thread and an event loop of its own, and only queues: what it receives waits in `inbox` for
the thread that owns the model, which answers by `Waiting.answer`."""

from __future__ import annotations

import asyncio
import json
import logging
import queue
import secrets
import socket
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from gspo_cli.agents.answers import Answer, error_body
from gspo_cli.agents.requests import ChatRequest, RequestError, read_request
from gspo_cli.types import AgentTurn

LARGEST_BODY = 16 * 2**20  # bytes
KEEP_ALIVE = 10.0  # seconds between signs of life in a stream
STARTS, STOPS = 30.0, 10.0  # seconds for the server to start and to end
SURROGATE = rb"\ud"  # how JSON writes half of one
MOST_OVER = 10_000  # keys of conversations that are over which are still known
STRANGER = "is not one of this rollout; use the one the agent was given"
ENDED = RequestError("conversation", "the conversation is over: its rollout has ended", 410)


@dataclass(eq=False)
class Waiting:
    """A request that waits for its answer; equal ones that came meanwhile wait with it."""

    conversation: int
    request: ChatRequest
    digest: bytes
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Answer | RequestError]
    waiters: int = 0

    def answer(self, found: Answer | RequestError) -> None:
        """Deliver. Called from the thread that owns the model."""
        self.loop.call_soon_threadsafe(self.take, found)

    def take(self, found: Answer | RequestError) -> None:
        """Deliver, in the server's own thread."""
        if not self.future.done():
            self.future.set_result(found)


@dataclass(frozen=True)
class Received:
    """A new request is in."""

    waiting: Waiting


@dataclass(frozen=True)
class Gone:
    """Nobody waits for a request any longer."""

    waiting: Waiting


@dataclass
class _Conversation:
    """Requests without an answer, and the last answer as long as nobody has read it, by what was sent, if
    equal requests are one (`joins`)."""

    joins: bool = True
    waiting: dict[bytes, Waiting] = field(default_factory=dict)
    unread: dict[bytes, Waiting] = field(default_factory=dict)


class EndpointServer:
    """A server on the loopback interface, from `start` to `stop`. `inbox` receives `Received` and `Gone`.

    `port` 0 is any free one. `reads` makes the request of a JSON body, and `stranger` is what somebody is
    told whose key is none of the open ones."""

    def __init__(
        self,
        model: str = "policy",
        port: int = 0,
        reads: Callable[[Any], ChatRequest] = read_request,
        stranger: str = STRANGER,
    ) -> None:
        self.model, self.port = model, port
        self._reads, self._stranger = reads, stranger
        self.inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._keys: dict[str, int] = {}
        self._over: dict[str, RequestError] = {}
        self._conversations: dict[int, _Conversation] = {}
        self._socket: socket.socket | None = None
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Where it listens, as clients take it."""
        assert self._socket is not None
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"

    def bind(self) -> None:
        """Take the port, on which nothing answers before `start`. Raises OSError where it cannot be had."""
        # asyncio sends small packets at once only where the protocol is named
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        if self.port:  # connections of a server that has ended do not hold a port that was chosen
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind(("127.0.0.1", self.port))
        except OSError:
            self._socket.close()
            self._socket = None
            raise

    def start(self) -> None:
        """Listen. Raises OSError where the port is taken, and RuntimeError where the server does not
        start."""
        if self._socket is None:
            self.bind()
        assert self._socket is not None
        self._socket.listen(1024)
        routes = [
            Route("/v1/chat/completions", self._completions, methods=["POST"]),
            Route("/v1/models", self._models, methods=["GET"]),
        ]
        logging.getLogger("uvicorn").propagate = False
        config = uvicorn.Config(
            Starlette(routes=routes),
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        sockets = [self._socket]
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": sockets}, name="endpoint", daemon=True
        )
        self._thread.start()
        waited = threading.Event()
        for _ in range(int(STARTS / 0.01)):
            if self._server.started:
                return
            if not self._thread.is_alive():
                break
            waited.wait(0.01)
        raise RuntimeError("the endpoint for agents did not start")

    def stop(self) -> None:
        """End the server; requests that wait are answered that their conversation is over."""
        for conversation in list(self._conversations):
            self.close(conversation)
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join(STOPS)
        if self._socket is not None:
            self._socket.close()

    def open(self, conversation: int, key: str | None = None, joins: bool = True) -> str:
        """A conversation, whose requests carry the returned key; None makes a random one. Equal requests in
        flight are one that was sent again, unless `joins` is false."""
        key = f"gspo-{secrets.token_urlsafe(24)}" if key is None else key
        self._conversations[conversation] = _Conversation(joins)
        self._keys[key] = conversation
        return key

    def close(self, conversation: int, reason: RequestError = ENDED) -> None:
        """Void the key of a conversation: requests that wait, and later ones, are told the `reason`."""
        found = self._conversations.pop(conversation, None)
        for key, place in list(self._keys.items()):
            if place == conversation:
                del self._keys[key]
                self._over[key] = reason
        while len(self._over) > MOST_OVER:
            del self._over[next(iter(self._over))]
        for waiting in list(found.waiting.values()) if found else ():
            waiting.answer(reason)

    async def _models(self, request: Request) -> Response:
        refused = self._refused(request)
        about = {"id": self.model, "object": "model", "created": 0, "owned_by": "gspo-cli"}
        return refused or JSONResponse({"object": "list", "data": [about]})

    async def _completions(self, request: Request) -> Response:
        refused = self._refused(request)
        if refused is not None:
            return refused
        try:
            body = await _body(request)
            waiting = self._waiting(self._keys[_key(request)], body)
        except ClientDisconnect:
            return Response(status_code=499)
        except KeyError:  # closed while the body was on its way
            return self._refused(request) or _error(ENDED)
        except RequestError as error:
            return _error(error)
        stream = waiting.request.stream
        try:
            found = await self._answered(request, waiting, KEEP_ALIVE if stream else None)
        except TimeoutError:  # from here on signs of life keep the connection up
            return StreamingResponse(self._stream(waiting), media_type="text/event-stream")
        if found is None:
            return Response(status_code=499)
        if isinstance(found, RequestError):
            return _error(found)
        if stream:
            return StreamingResponse(self._stream(waiting), media_type="text/event-stream")
        return JSONResponse(found.body(), background=BackgroundTask(self._read, waiting))

    def _refused(self, request: Request) -> Response | None:
        key = _key(request)
        if key in self._keys:
            return None
        if key in self._over:
            return _error(self._over[key])
        return _error(RequestError("api_key", self._stranger, 401))

    def _waiting(self, conversation: int, body: bytes) -> Waiting:
        """The request of a body: a new one, or the same that was sent before and has not been read."""
        state = self._conversations[conversation]
        digest = blake2b(body, digest_size=16).digest() if state.joins else secrets.token_bytes(16)
        found = state.waiting.get(digest) or state.unread.get(digest)
        if found is None:
            loop = asyncio.get_running_loop()
            read = self._reads(_parsed(body))
            if SURROGATE in body.lower():
                _require_characters(read)
            found = Waiting(conversation, read, digest, loop, loop.create_future())
            state.unread.clear()
            state.waiting[digest] = found
            found.future.add_done_callback(lambda _: self._kept(found))
            self.inbox.put(Received(found))
        found.waiters += 1
        return found

    def _kept(self, waiting: Waiting) -> None:
        """An answer is there: it can be read again until somebody has. One that was sent again meanwhile
        gets it, too."""
        state = self._conversations.get(waiting.conversation)
        if state is None or not state.joins:
            return
        again = state.waiting.pop(waiting.digest, waiting)
        if again is not waiting:
            again.take(waiting.future.result())
        state.unread[waiting.digest] = waiting

    async def _read(self, waiting: Waiting) -> None:
        """An answer was sent as a whole: the next equal request is a new one."""
        state = self._conversations.get(waiting.conversation)
        if state is not None:
            state.unread.pop(waiting.digest, None)

    async def _answered(
        self, request: Request, waiting: Waiting, seconds: float | None
    ) -> Answer | RequestError | None:
        """The answer; None if the client has gone before. Raises TimeoutError after `seconds`, with the
        client still waiting."""
        gone = asyncio.ensure_future(_disconnected(request))
        left = True
        try:
            either: set[asyncio.Future[Any]] = {waiting.future, gone}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED, timeout=seconds)
            await asyncio.sleep(0)  # a client that has gone by now does not read the answer
            if not (gone.done() or waiting.future.done()):
                left = False
                raise TimeoutError
        finally:
            gone.cancel()
            if left:
                waiting.waiters -= 1
        if waiting.future.done() and not gone.done():
            return waiting.future.result()
        self._leave(waiting)
        return None

    def _leave(self, waiting: Waiting) -> None:
        if waiting.waiters == 0 and not waiting.future.done():
            state = self._conversations.get(waiting.conversation)
            if state is not None:
                state.waiting.pop(waiting.digest, None)
            self.inbox.put(Gone(waiting))

    async def _stream(self, waiting: Waiting) -> AsyncIterator[str]:
        """Signs of life, then the finished answer as events. A client that goes ends it before its end."""
        if not waiting.future.done():
            try:
                while not waiting.future.done():
                    yield ": the agent's turn is not finished\n\n"
                    await asyncio.wait({waiting.future}, timeout=KEEP_ALIVE)
            finally:
                waiting.waiters -= 1
                self._leave(waiting)
        found = waiting.future.result()
        if isinstance(found, RequestError):
            yield f"data: {json.dumps(_body_of(found))}\n\ndata: [DONE]\n\n"
            return
        for event in found.events(waiting.request.with_usage):
            yield event
        await self._read(waiting)


def _key(request: Request) -> str:
    kind, _, key = request.headers.get("authorization", "").partition(" ")
    return key.strip() if kind.lower() == "bearer" else ""


async def _body(request: Request) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > LARGEST_BODY:
            raise RequestError("body", f"is larger than {LARGEST_BODY // 2**20} MiB", 413)
        parts.append(part)
    return b"".join(parts)


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body.decode())
    except (ValueError, RecursionError) as error:  # also bytes that are not UTF-8
        raise RequestError("body", "is not JSON") from error


def _require_characters(request: ChatRequest) -> None:
    """Raise RequestError where a text, or one within the arguments of a call, is none of characters."""
    calls = [call for m in request.messages if isinstance(m.content, AgentTurn) for call in m.content.calls]
    told = [str(message.content) for message in request.messages]
    made = [[call.name, dict(call.arguments)] for call in calls]
    declared = [tool.schema() for tool in request.tools]
    try:
        json.dumps([told, made, declared, request.stops], ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        raise RequestError("body", "has half of a surrogate pair, which is not a character") from error


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _error(error: RequestError) -> Response:
    # clients of the OpenAI SDK repeat what fails with 408, 409, 429 and 5xx by themselves
    return JSONResponse(_body_of(error), status_code=error.status)


def _body_of(error: RequestError) -> dict[str, Any]:
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    return error_body(str(error), error.field, kind, error.code)
