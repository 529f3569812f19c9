"""Bytes that no HTTP library would send."""

import json
import socket

import pytest


@pytest.fixture(scope="module")
def service(shared_service):
    return shared_service


def answer(connection):
    """Everything until the service closes."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def exchange(service, data):
    """Send raw bytes, read to the end, and check that the service is still right."""
    connection = service.connect()
    connection.sendall(data)
    try:
        got = answer(connection)
    finally:
        connection.close()
    assert service.complete("hello", max_tokens=2).status_code == 200
    return got


BODY = json.dumps({"model": "tiny", "prompt": "hello", "max_tokens": 2}).encode()

MALFORMED = {
    "no HTTP at all": b"hello\r\n\r\n",
    "TLS to a plain port": bytes.fromhex("160301020001000001fc0303") + b"\0" * 40,
    "a header without a colon": b"GET /health HTTP/1.1\r\nHost localhost\r\n\r\n",
    "no Host": b"GET /health HTTP/1.1\r\n\r\n",
    "two Hosts": b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n",
    "a Content-Length of text": b"POST /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
    "a negative Content-Length": b"POST /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    "two Content-Lengths": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "an unknown transfer encoding": b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n",
    "a head without an end": b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 40_000,
    "a null in a header": b"GET /health HTTP/1.1\r\nHost: local\0host\r\n\r\n",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_http_is_a_400_in_the_same_form(service, name):
    got = exchange(service, MALFORMED[name])
    head, _, body = got.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"]["code"] == "invalid_http"


def test_a_chunk_size_that_is_no_number_is_a_400(service):
    head = service.head("/v1/completions", "Transfer-Encoding: chunked")
    assert exchange(service, head + b"zz\r\n{}").startswith(b"HTTP/1.1 400 ")


def test_a_chunked_body_is_read_like_any_other(service):
    head = service.head("/v1/completions", "Transfer-Encoding: chunked", "Connection: close")
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (BODY[:7], BODY[7:])) + b"0\r\n\r\n"
    assert b'"completion_tokens":2' in exchange(service, head + chunks)


def test_a_chunked_body_without_end_is_refused_at_the_limit(service):
    refused = service.service.stats.responses["/v1/completions", 413]
    head = service.head("/v1/completions", "Transfer-Encoding: chunked")
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    connection = service.connect()
    connection.sendall(head)
    with pytest.raises((BrokenPipeError, ConnectionResetError)):  # else 64 MiB were taken
        for _ in range(1000):
            connection.sendall(chunk)
    connection.close()
    assert service.service.stats.responses["/v1/completions", 413] == refused + 1
    assert service.complete("hello", max_tokens=2).status_code == 200


def test_a_content_length_far_over_the_limit_is_refused_before_the_body_comes(service):
    got = exchange(service, service.head("/v1/completions", "Content-Length: 1000000000000"))
    assert got.startswith(b"HTTP/1.1 413 ")


def test_a_content_length_shorter_than_the_body_cuts_the_json_and_the_rest_is_no_request(service):
    got = exchange(
        service, service.head("/v1/completions", f"Content-Length: {len(BODY) - 5}") + BODY + b"\r\n\r\n"
    )
    assert got.startswith(b"HTTP/1.1 400 ")
    assert b"not JSON" in got and got.count(b"HTTP/1.1 ") == 2
    assert b"invalid_http" in got


def test_a_client_that_closes_before_its_body_is_complete_harms_nobody(service):
    connection = service.connect()
    connection.sendall(service.head("/v1/completions", "Content-Length: 500") + b'{"prompt"')
    connection.close()
    assert service.complete("hello", max_tokens=2).status_code == 200


def test_expect_continue_is_answered(service):
    head = service.head(
        "/v1/completions", f"Content-Length: {len(BODY)}", "Expect: 100-continue", "Connection: close"
    )
    connection = service.connect()
    connection.sendall(head)
    assert connection.recv(4096).startswith(b"HTTP/1.1 100 ")
    connection.sendall(BODY)
    assert b'"completion_tokens":2' in answer(connection)
    connection.close()


def test_pipelined_requests_are_answered_in_order(service):
    one = service.head("/v1/completions", f"Content-Length: {len(BODY)}") + BODY
    last = service.head("/health", "Connection: close", method="GET")
    got = exchange(service, one + one + last)
    assert got.count(b"HTTP/1.1 200 ") == 3
    assert got.index(b"cmpl-") < got.index(b'"status":"ok"')


def test_small_answers_are_not_delayed_by_nagles_algorithm(service):
    assert service.client.get("/health").status_code == 200
    for connection in service.server.server_state.connections:
        accepted = connection.transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_an_upgrade_to_websocket_is_not_taken(service):
    head = service.head("/health", "Upgrade: websocket", "Connection: Upgrade, close", method="GET")
    assert exchange(service, head).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("start", [b"GET /health HTTP/1.0\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"])
def test_a_client_of_another_http_version_without_host_is_refused(service, start):
    assert exchange(service, start).startswith(b"HTTP/1.1 403 ")


def test_a_request_head_that_does_not_come_is_cut_at_its_deadline(service, monkeypatch):
    monkeypatch.setattr("lean.leanserve.http.server.HEAD_SECONDS", 0.1)
    connection = service.connect()
    connection.sendall(b"GET /health HTTP/1.1\r\nHost:")
    assert answer_or_reset(connection) == b""
    connection.close()


def test_a_second_request_head_that_does_not_come_is_cut_too(service, monkeypatch):
    monkeypatch.setattr("lean.leanserve.http.server.HEAD_SECONDS", 0.2)
    connection = service.connect()
    connection.sendall(service.head("/health", method="GET"))
    first = b""
    while not first.endswith(b"}}"):
        first += connection.recv(65536)
    connection.sendall(b"GET /health HT")
    assert first.startswith(b"HTTP/1.1 200 ")
    assert answer_or_reset(connection) == b""
    connection.close()


def test_half_a_head_behind_a_whole_request_is_cut_too(service, monkeypatch):
    monkeypatch.setattr("lean.leanserve.http.server.HEAD_SECONDS", 0.2)
    connection = service.connect()
    connection.sendall(service.head("/health", method="GET") + b"GET /health HT")
    assert answer_or_reset(connection).startswith(b"HTTP/1.1 200 ")
    connection.close()


def answer_or_reset(connection):
    """What came until the service closed or reset the connection."""
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)
