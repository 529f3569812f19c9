"""The one way the HTTP surface says no: OpenAI's error document with a 4xx or 5xx status."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse

from lean.leanserve.request import Refusal, RefusalKind


class ApiError(Exception):
    """A request that cannot be served. `param` names the field; `retry_after` is in seconds."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after = retry_after

    def document(self) -> dict[str, Any]:
        """`{"error": {"message", "type", "param", "code"}}`."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """The headers that go with the status."""
        found = {"cache-control": "no-store"}
        if self.retry_after is not None:
            found["retry-after"] = str(self.retry_after)
        if self.status == 401:
            found["www-authenticate"] = "Bearer"
        if self.status in (408, 413):
            found["connection"] = "close"
        return found


def bad_request(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """A 400 that names the field."""
    return ApiError(400, message, code=code, param=param)


def from_refusal(refusal: Refusal) -> ApiError:
    """The HTTP form of the engine's refusal: 429 when full, 500 when the runner failed, else 503."""
    status, code, retry = _REFUSALS[refusal.kind]
    return ApiError(status, str(refusal), code=code, retry_after=retry)


def error_response(error: ApiError) -> JSONResponse:
    """An `ApiError` as its JSON response."""
    return JSONResponse(error.document(), status_code=error.status, headers=error.headers())


_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}

_REFUSALS: dict[RefusalKind, tuple[int, str, int | None]] = {
    "loading": (503, "not_ready", 1),
    "full": (429, "queue_full", 1),
    "draining": (503, "shutting_down", 5),
    "failed": (500, "runner_failed", None),
    "stopped": (503, "shutting_down", 5),
}
