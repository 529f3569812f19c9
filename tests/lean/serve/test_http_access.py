"""Who gets in: the token on every route, loopback names only."""

import os

import httpx
import pytest

from lean.bearer import read_token
from lean.errors import PreflightError

ROUTES = [
    ("POST", "/v1/completions"),
    ("POST", "/v1/chat/completions"),
    ("GET", "/v1/models"),
    ("GET", "/health"),
    ("GET", "/metrics"),
    ("GET", "/"),
    ("GET", "/docs"),
    ("OPTIONS", "/v1/completions"),
]


@pytest.fixture(scope="module")
def service(shared_service):
    return shared_service


@pytest.fixture(scope="module")
def anonymous(service):
    with httpx.Client(base_url=service.client.base_url, timeout=10.0) as client:
        yield client


@pytest.mark.security("every route wants the token")
@pytest.mark.parametrize("method, path", ROUTES)
def test_without_the_token_every_route_is_a_401_and_says_nothing_else(anonymous, method, path):
    response = anonymous.request(method, path)
    assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.security("every route wants the token")
@pytest.mark.parametrize(
    "value",
    [
        "",
        "Bearer",
        "Bearer wrong",
        "Bearer a-token-for-the-test",
        "Bearer a-token-for-the-tests2",
        "a-token-for-the-tests",
        "Basic a-token-for-the-tests",
        "Bearer A-TOKEN-FOR-THE-TESTS",
    ],
)
def test_anything_but_the_exact_token_is_refused(anonymous, value):
    assert anonymous.get("/health", headers={"authorization": value}).status_code == 401


def test_a_token_that_is_no_ascii_is_refused_and_not_an_error(anonymous):
    headers = [(b"authorization", "Bearer ä-token-for-the-tests".encode())]
    assert anonymous.get("/health", headers=headers).status_code == 401


def test_two_tokens_are_none(anonymous):
    right = (b"authorization", b"Bearer a-token-for-the-tests")
    assert anonymous.get("/health", headers=[right, right]).status_code == 401


def test_the_scheme_is_case_insensitive_as_the_rfc_says(anonymous):
    headers = {"authorization": "bearer a-token-for-the-tests"}
    assert anonymous.get("/health", headers=headers).status_code == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST:9", "127.0.0.1:65535"])
def test_loopback_hosts_are_served_on_any_port_because_a_forward_may_change_it(service, host):
    assert service.client.get("/health", headers={"host": host}).status_code == 200


@pytest.mark.security("a foreign Host or Origin is refused")
@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil",
        "127.0.0.1@evil",
        "127.0.0.1:80:80",
        "0.0.0.0",
        "127.0.0.2",
        "[::1]",
        "127.0.0.1:",
        "localhost:x",
        "127.0.0.1/",
        "127.0.0.1:123456",
    ],
)
def test_a_foreign_host_is_refused_even_with_the_token(service, host):
    response = service.client.get("/health", headers={"host": host})
    assert (response.status_code, response.json()["error"]["code"]) == (403, "host_not_allowed")


@pytest.mark.parametrize("origin", ["http://127.0.0.1:8080", "http://localhost", "https://localhost:1"])
def test_pages_of_this_machine_may_call(service, origin):
    assert service.client.get("/health", headers={"origin": origin}).status_code == 200


@pytest.mark.security("a foreign Host or Origin is refused")
@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "http://evil.example",
        "http://localhost.evil",
        "http://127.0.0.1@evil",
        "file://",
        "localhost",
        "http://127.0.0.1:80/path",
        "http://localhost:80 http://evil",
    ],
)
def test_a_foreign_origin_is_refused_even_with_the_token(service, origin):
    response = service.client.get("/health", headers={"origin": origin})
    assert (response.status_code, response.json()["error"]["code"]) == (403, "origin_not_allowed")


def test_no_response_lets_other_origins_read_it(service):
    response = service.client.get("/health", headers={"origin": "http://localhost:3000"})
    assert not any(name.startswith("access-control") for name in response.headers)


def write(path, text, mode):
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_token_file_gives_its_token_without_the_line_end(tmp_path):
    assert read_token(write(tmp_path / "token", "0123456789abcdef\n", 0o600)) == b"0123456789abcdef"


@pytest.mark.security("files are 0600 and folders 0700")
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o620, 0o601])
def test_a_token_file_that_others_can_touch_is_refused_with_the_fix(tmp_path, mode):
    path = write(tmp_path / "token", "0123456789abcdef", mode)
    with pytest.raises(PreflightError, match=f"chmod 600 {path}"):
        read_token(path)


@pytest.mark.parametrize(
    "text",
    [
        *("", "short", "with a space in the middle", "x" * 513, "ünicode-token-of-enough"),
        "line-one\r\nInjected: yes",
    ],
)
def test_a_token_that_is_none_is_refused_and_not_shown(tmp_path, text):
    with pytest.raises(PreflightError, match="16 to 512 printable") as refused:
        read_token(write(tmp_path / "token", text, 0o600))
    assert not text or text not in str(refused.value)


def test_a_missing_token_file_names_itself_and_the_fix(tmp_path):
    with pytest.raises(PreflightError, match="No such file or directory; write 16 or more"):
        read_token(tmp_path / "token")


def test_a_pipe_for_a_token_file_is_refused_and_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "token", 0o600)
    with pytest.raises(PreflightError, match="not a regular file"):
        read_token(tmp_path / "token")
