"""What stands before the interface: the token, and limits on sizes, times and rates."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeAlias

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]

HEADERS = [
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
     b"img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]  # fmt: skip

AT_ONCE = 10
"""Requests that pass at once at any rate: a page with its files, and what it asks for."""


@dataclass(frozen=True)
class Limits:
    """body: bytes of a request. rate: requests a second with the token, twice as many at once; strangers, and the
    pages, have a tenth of it. At least `AT_ONCE` pass at once, of both kinds. patience: seconds in which a body has to
    arrive."""

    body: int = 1 << 20
    rate: float = 200.0
    patience: float = 30.0


class Bucket:
    """Lets `rate` requests a second pass, and `burst` at once."""

    def __init__(self, rate: float, burst: float) -> None:
        self.rate, self.burst = rate, burst
        self.level, self.since = self.burst, time.monotonic()

    def take(self) -> bool:
        now = time.monotonic()
        self.level = min(self.burst, self.level + (now - self.since) * self.rate)
        self.since = now
        if self.level < 1:
            return False
        self.level -= 1
        return True


class Guard:
    """An ASGI application before another: 429, 401, 413 and 408 are answered here.

    Without the token no body is read: public paths take none, and other paths take the token. A body whose announced
    length is too large is refused before it is read, too. Without a length it is read up to the limit, so no more than
    that is ever in memory. The token is compared in constant time.
    """

    def __init__(self, app: Application, token: str, limits: Limits, public: frozenset[str]) -> None:
        self.app, self.limits, self.public = app, limits, public
        self.token = token.encode()
        self.known = Bucket(limits.rate, max(2 * limits.rate, AT_ONCE))
        self.strangers = Bucket(limits.rate / 10, max(limits.rate / 5, AT_ONCE))

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        close = b"content-length" in headers or b"transfer-encoding" in headers  # there is a body, which is not read
        known = self.knows(headers.get(b"authorization", b""))
        if not (self.known if known else self.strangers).take():
            await refuse(send, 429, "too many requests; wait a second", (b"retry-after", b"1"), close=close)
        elif not known and scope["path"] not in self.public:
            why = "the token is missing or wrong; send the header Authorization: Bearer TOKEN"
            await refuse(send, 401, why, (b"www-authenticate", b"Bearer"), close=close)
        elif (length := announced(headers)) is None:
            await refuse(send, 400, "the Content-Length is no number")
        elif scope["path"] in self.public and (length or b"transfer-encoding" in headers):
            await refuse(send, 413, "a page takes no body; leave it out, or send it to a path under /v1/")
        elif length > self.limits.body:
            await refuse(send, 413, self.too_large)
        else:
            await self.pass_on(scope, receive, send)

    def knows(self, authorization: bytes) -> bool:
        scheme, _, given = authorization.partition(b" ")
        return hmac.compare_digest(given.strip(), self.token) and scheme.lower() == b"bearer"

    @property
    def too_large(self) -> str:
        return f"the body is larger than {self.limits.body} bytes; send fewer answers at once"

    async def pass_on(self, scope: Message, receive: Receive, send: Send) -> None:
        """Read the body, within its limits, and let the application answer."""
        try:
            async with asyncio.timeout(self.limits.patience):
                body = await self.body(receive)
        except TimeoutError:
            await refuse(send, 408, f"the body did not arrive within {self.limits.patience:g} s")
            return
        if body is None:
            await refuse(send, 413, self.too_large)
            return
        rest: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return rest.pop() if rest else await receive()

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *HEADERS]}
            await send(message)

        await self.app(scope, again, with_headers)

    async def body(self, receive: Receive) -> bytes | None:
        """The body; None where it is too large."""
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return bytes(body)
            body += message.get("body", b"")
            if len(body) > self.limits.body:
                return None
            if not message.get("more_body", False):
                return bytes(body)


def announced(headers: dict[bytes, bytes]) -> int | None:
    """The length that a request announces, 0 without; None where it is no number."""
    told = headers.get(b"content-length", b"0")
    return int(told) if told.isdigit() and len(told) < 20 else None


async def refuse(send: Send, status: int, why: str, *more: tuple[bytes, bytes], close: bool = True) -> None:
    """An answer that is given before the body was read. close: end the connection, so that it never is."""
    body = json.dumps({"detail": why}).encode()
    headers = [
        (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *HEADERS, *more,
        *([(b"connection", b"close")] if close else []),
    ]  # fmt: skip
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
