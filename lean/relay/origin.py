"""A file behind HTTP, read in ranges of one version of it."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TypeVar
from urllib.parse import unquote, urlsplit

import requests
from requests.auth import HTTPBasicAuth
from urllib3.exceptions import HTTPError

from lean.errors import AuthError, LeanError, TransferError, UnreachableError, UsageError

TRIES = 5
FIRST_PAUSE_S = 0.5
PIECE = 1 << 18
SILENCE_S = 30.0  # bounds connecting, and every silence
STRONG_AFTER_S = 60.0  # a modification date counts once no second change can hide behind it
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+)")

T = TypeVar("T")


class Changed(Exception):
    """The address now answers with other bytes than before, or cannot answer for a part of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """What one address held at one moment.

    `size` in bytes. `validator` is a strong ETag, else a modification date that is old enough, else empty.
    `ranges`: parts of this very version can be asked for.
    """

    size: int
    validator: str
    ranges: bool


class Origin:
    """One HTTP client. `credentials` are headers for the first host only, never for one it redirects to.

    Addresses in messages are without their query, which may be signed. Thread-safe.
    """

    def __init__(self, credentials: Mapping[str, str] | None = None) -> None:
        headers = {"Accept-Encoding": "identity", "User-Agent": "leanstack"}
        self._headers = headers | dict(credentials or {})
        self._threads = threading.local()  # a session belongs to one thread

    @property
    def _session(self) -> requests.Session:
        if not hasattr(self._threads, "session"):
            session = self._threads.session = requests.Session()
            session.headers.clear()
        found: requests.Session = self._threads.session
        return found

    def version(self, url: str) -> Version:
        """Ask for the first byte and read what the answer says of the whole.

        Errors: `UnreachableError` after several tries, `AuthError`, `UsageError` for what is not there,
        `TransferError` when no length is stated.
        """
        return repeated(lambda: self._version(url))

    def _version(self, url: str) -> Version:
        with self._answer(url, {"Range": "bytes=0-0"}) as answer:
            stated = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
            if answer.status_code in (206, 416) and stated is not None:
                validator = _validator(answer)
                size = int(stated[3])
                return Version(size=size, validator=validator, ranges=bool(validator) or size == 0)
            length = answer.headers.get("Content-Length", "")
            if answer.status_code == 200 and length.isdigit():
                return Version(size=int(length), validator=_validator(answer), ranges=False)
            if answer.status_code == 200:
                raise TransferError(f"{shown(url)}: the server does not state the file's length")
            raise _failure(url, answer.status_code)

    def read(self, url: str, version: Version, start: int, end: int) -> Generator[bytes, None, None]:
        """Bytes `start` to `end` (not included) of exactly this version, in pieces.

        One try. Errors: `Changed` for any sign of another version, `UnreachableError` for what may go better
        the next time: the network, a short body, a server that is unwell.
        """
        headers = {"Range": f"bytes={start}-{end - 1}", "If-Range": version.validator}
        with self._answer(url, headers) as answer:
            if answer.status_code == 200 or answer.status_code == 416:
                raise Changed(f"{shown(url)}: another version than at first, or no parts any more")
            if answer.status_code != 206:
                raise _failure(url, answer.status_code)
            stated = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
            expected = (str(start), str(end - 1), str(version.size))
            if stated is None or stated.groups() != expected or _validator(answer) != version.validator:
                raise Changed(f"{shown(url)}: another version than at first")
            yield from _body(url, answer, end - start)

    def read_all(self, url: str, version: Version) -> Generator[bytes, None, None]:
        """The whole body of this version, in pieces, from a server that knows no ranges.

        Errors: as `read`.
        """
        with self._answer(url, {}) as answer:
            if answer.status_code != 200:
                raise _failure(url, answer.status_code)
            length = answer.headers.get("Content-Length")
            if length != str(version.size) or _validator(answer) != version.validator:
                raise Changed(f"{shown(url)}: another version than at first")
            yield from _body(url, answer, version.size)

    @contextmanager
    def _answer(self, url: str, headers: dict[str, str]) -> Iterator[requests.Response]:
        try:
            with self._session.get(
                url,
                headers=self._headers | headers,
                stream=True,
                timeout=SILENCE_S,
                auth=_own_auth(url),
            ) as answer:
                yield answer
        except (requests.exceptions.InvalidSchema, requests.exceptions.MissingSchema):
            raise UsageError(f"{shown(url)}: expected an http or https address") from None
        except (requests.exceptions.InvalidURL, ValueError):
            raise UsageError(f"{shown(url)}: not an address") from None
        except (requests.RequestException, HTTPError) as error:
            raise _unwell(f"{shown(url)}: {type(error).__name__}") from None


def shown(url: str) -> str:
    """The address as messages name it: without user, query and fragment, any of which may be a secret."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "the address"
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"[:300]


def _own_auth(url: str) -> Callable[[requests.PreparedRequest], requests.PreparedRequest]:
    """The address's own user and password, or our header as it is: ~/.netrc must not overrule it."""
    parts = urlsplit(url)
    if parts.username is not None:
        return HTTPBasicAuth(unquote(parts.username), unquote(parts.password or ""))
    return lambda request: request


def _body(url: str, answer: requests.Response, size: int) -> Iterator[bytes]:
    got = 0
    while piece := answer.raw.read(PIECE, decode_content=False):
        got += len(piece)
        yield piece
    if got != size:
        raise _unwell(f"{shown(url)}: the body ended after {got} of {size} bytes")


def _validator(answer: requests.Response) -> str:
    """What tells this version from every other, or nothing: RFC 9110, 8.8.2.2 and 8.8.3."""
    etag = str(answer.headers.get("ETag", ""))
    if etag and not etag.startswith("W/"):
        return etag
    modified = str(answer.headers.get("Last-Modified", ""))
    try:
        age = parsedate_to_datetime(answer.headers.get("Date", "")) - parsedate_to_datetime(modified)
    except (TypeError, ValueError):
        return ""
    return modified if age.total_seconds() >= STRONG_AFTER_S else ""


def _failure(url: str, status: int) -> LeanError:
    if status in (401, 403):
        return AuthError(f"{shown(url)}: refused ({status}); it wants other credentials")
    if status in (404, 410):
        return UsageError(f"{shown(url)}: not there ({status})")
    if status == 429 or status >= 500:
        return _unwell(f"{shown(url)}: the server answered {status}")
    return TransferError(f"{shown(url)}: the server answered {status}")


def _unwell(what: str) -> UnreachableError:
    return UnreachableError(f"{what}; check the network, then run it again to go on")


def repeated(work: Callable[[], T], stop: threading.Event | None = None) -> T:
    """`work`, again after a pause while it raises a plain `UnreachableError`, a few times at most.

    `stop` ends pauses and further tries.
    """
    stop, pause = stop or threading.Event(), FIRST_PAUSE_S
    for _ in range(TRIES - 1):
        try:
            return work()
        except UnreachableError as error:
            if type(error) is not UnreachableError or stop.wait(pause):  # a refused login stays refused
                raise
            pause *= 2
    return work()
