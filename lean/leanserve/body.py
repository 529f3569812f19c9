"""Reading a request body with a size and a time that the client cannot exceed."""

from __future__ import annotations

import asyncio

from starlette.requests import Request

from lean.leanserve.api_error import ApiError


async def read_body(request: Request, *, limit: int, seconds: float) -> bytes:
    """The whole body, at most `limit` bytes. Errors: `ApiError` 413 when longer, 408 when not complete in
    time.

    A body somewhat too long is still read to its end, and thrown away, so that the client sees the 413
    instead of a connection reset; one far too long is refused at once.
    """
    announced = int(request.headers.get("content-length", "0"))  # the HTTP parser lets only digits through
    too_long = ApiError(413, f"the body is longer than {limit} bytes", code="body_too_large")
    if announced > 8 * limit:
        raise too_long
    body, size = bytearray(), 0
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                size += len(part)
                if size > 8 * limit:
                    raise too_long
                if size <= limit:
                    body += part
    except TimeoutError as error:
        message = f"the body did not arrive within {seconds:g} s; is Content-Length right?"
        raise ApiError(408, message, code="body_timeout") from error
    if size > limit:
        raise too_long
    return bytes(body)
