"""Clients that leave, read slowly, come too early, too many, or while everything ends."""

import json
import socket
import threading
from contextlib import ExitStack

import pytest
from helpers import until

from lean.leanserve.http.app import HttpLimits


@pytest.fixture
def send():
    """`send(service, prompt)`: a raw completion request; the test reads or leaves."""
    with ExitStack() as stack:

        def dial(service, prompt, *, receive_buffer=None, **fields):
            body = json.dumps({"model": "tiny", "prompt": prompt, "temperature": 0, **fields}).encode()
            connection = stack.enter_context(socket.socket())
            if receive_buffer is not None:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            connection.settimeout(10.0)
            connection.connect(("127.0.0.1", service.port))
            connection.sendall(service.head("/v1/completions", f"Content-Length: {len(body)}") + body)
            return connection

        yield dial


def read_until(connection, mark):
    """The bytes up to and with `mark`."""
    found = b""
    while mark not in found[-65536 - len(mark) :]:
        part = connection.recv(65536)
        assert part, found
        found += part
    return found


def read_rest(connection):
    """What still comes until the connection ends or is reset."""
    found = b""
    while True:
        try:
            part = connection.recv(65536)
        except ConnectionResetError:
            return found
        if not part:
            return found
        found += part


def counted(service, outcome):
    return service.service.stats.outcomes[outcome]


def still_right(service):
    service.runner.permits = None
    assert service.complete("afterwards", max_tokens=2).status_code == 200


def test_a_client_that_leaves_mid_stream_frees_its_slot_and_no_neighbour_notices(new_service, scripted, send):
    def run(leave):
        service = new_service(scripted(manual=True), pinned_bucket=4)
        leaver = send(service, "leaver", max_tokens=200, stream=True)
        read_until(leaver, b"\n\n")
        stays = send(service, "stays", max_tokens=60, stream=True)
        until(lambda: service.engine.status().waiting == 1)
        service.runner.allow(8)
        got = read_until(stays, b"\n\n")
        if leave:
            leaver.close()
            until(lambda: service.runner.allow(1) or counted(service, "cancelled") == 1)
            assert service.engine.status().running == 1
        service.runner.allow(300)
        got += read_until(stays, b"[DONE]")
        events = [line[6:] for line in got.decode().splitlines() if line.startswith("data: {")]
        return "".join(json.loads(event)["choices"][0]["text"] for event in events)

    stayed = run(leave=True)
    assert (len(stayed), stayed) == (60, run(leave=False))


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_while_queued_frees_its_place(new_service, scripted, stream, send):
    service = new_service(scripted(slots=1, manual=True), queue_limit=1)
    send(service, "running", max_tokens=100)
    until(lambda: service.engine.status().running == 1)
    queued = send(service, "queued", max_tokens=5, stream=stream)
    until(lambda: service.engine.status().waiting == 1)
    queued.close()
    until(lambda: service.engine.status().waiting == 0)
    assert counted(service, "cancelled") == 1
    service.runner.allow(200)
    still_right(service)


def test_a_client_that_leaves_in_prefill_stops_the_prefill(new_service, scripted, send):
    service = new_service(scripted(slots=2, manual=True))
    running = send(service, "running", max_tokens=100, stream=True)
    read_until(running, b"\n\n")
    leaver = send(service, "p" * 400, max_tokens=5)
    until(lambda: service.engine.status().waiting == 1)
    service.runner.allow(3)
    service.runner.await_call("decode", 1, (0,))
    until(lambda: len([call for call in service.runner.calls if call[:2] == ("prefill", 1)]) >= 3)
    leaver.close()
    until(lambda: service.runner.allow(1) or counted(service, "cancelled") == 1)
    assert sum(call[2] for call in service.runner.calls if call[:2] == ("prefill", 1)) < 400


def test_a_client_that_resets_the_connection_is_gone_too(new_service, scripted, send):
    service = new_service(scripted(manual=True))
    connection = send(service, "reset", max_tokens=100, stream=True)
    read_until(connection, b"\n\n")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.close()
    until(lambda: service.runner.allow(1) or counted(service, "cancelled") == 1)
    still_right(service)


def slow_reader(service, send):
    """A client that reads one event and no more, over a connection with small buffers; 4000 tokens follow."""
    slow = send(service, "slow", receive_buffer=4096, max_tokens=4000, stream=True)
    read_until(slow, b"\n\n")
    (connection,) = service.server.server_state.connections
    connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    service.runner.allow(10_000)
    return slow, connection


def test_a_reader_that_reads_nothing_blocks_nobody_and_holds_no_slot(new_service, scripted, send):
    service = new_service(scripted(slots=1, max_length=5000, script={b"slow": b"x"}, manual=True))
    slow, connection = slow_reader(service, send)
    until(lambda: counted(service, "length") == 1)
    until(lambda: connection.flow.write_paused)
    assert service.complete("quick", max_tokens=3).json()["usage"]["completion_tokens"] == 3
    assert read_until(slow, b"[DONE]").count(b'"text":') >= 3990  # and it still gets all of its answer


def test_a_reader_that_reads_nothing_for_too_long_is_cut(new_service, scripted, send):
    runner = scripted(slots=1, max_length=5000, script={b"slow": b"x"}, manual=True)
    service = new_service(runner, send_seconds=0.5)
    slow, _ = slow_reader(service, send)
    until(lambda: not service.server.server_state.connections)
    assert b"[DONE]" not in read_rest(slow)
    still_right(service)


def test_a_full_queue_is_a_429_with_retry_after_and_the_next_request_is_right(new_service, scripted, send):
    service = new_service(scripted(slots=1, manual=True), queue_limit=1)
    first = send(service, "first", max_tokens=3)
    second = send(service, "second", max_tokens=3)
    until(lambda: service.engine.status().running + service.engine.status().waiting == 2)
    response = service.complete("third")
    assert (response.status_code, response.json()["error"]["type"]) == (429, "rate_limit_error")
    assert int(response.headers["retry-after"]) >= 1
    service.runner.allow(10)
    assert b'"completion_tokens":3' in read_until(first, b"decode_seconds")
    assert b'"completion_tokens":3' in read_until(second, b"decode_seconds")
    still_right(service)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/models", "/health"])
def test_before_the_first_token_every_answer_is_a_503_with_retry_after(new_service, path, send):
    service = new_service(wait=False)
    method = "POST" if "completions" in path else "GET"
    response = service.client.request(method, path)
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert "loading" in response.json()["error"]["message"]
    service.engine.start()
    service.engine.ready.result(timeout=5.0)
    assert service.complete("now").status_code == 200
    assert service.client.get("/health").json()["status"] == "ok"


def test_a_runner_that_fails_is_a_500_and_health_says_so(new_service, scripted, capfd, send):
    service = new_service(scripted(fail_decode_at=3))
    response = service.complete("fails", max_tokens=20)
    assert (response.status_code, response.json()["error"]["code"]) == (500, "runner_failed")
    health = service.client.get("/health")
    assert (health.status_code, health.json()["status"]) == (503, "failed")
    assert "fell off the bus" in health.json()["error"]["message"]
    assert service.complete("afterwards").status_code == 500
    capfd.readouterr()


def test_a_runner_that_fails_before_the_first_token_of_a_stream_is_a_500_too(
    new_service, scripted, capfd, send
):
    service = new_service(scripted(fail_prefill=b"bad"))
    assert service.complete("bad", stream=True).status_code == 500
    capfd.readouterr()


def test_a_runner_that_fails_mid_stream_ends_the_stream_with_an_error_event(
    new_service, scripted, capfd, send
):
    service = new_service(scripted(fail_decode_at=3))
    lines = [line for line in service.complete("fails", stream=True, max_tokens=20).text.splitlines() if line]
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "runner_failed"
    assert "data: [DONE]" not in lines
    capfd.readouterr()


def test_while_draining_new_requests_get_503_and_running_ones_finish(new_service, scripted, send):
    service = new_service(scripted(manual=True))
    running = send(service, "running", max_tokens=5)
    until(lambda: service.engine.status().running == 1)
    drain = threading.Thread(target=service.engine.drain, args=(10.0,))
    drain.start()
    until(lambda: service.engine.status().state == "draining")
    response = service.complete("too late")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "shutting_down")
    assert response.headers["retry-after"]
    assert service.client.get("/health").json()["status"] == "draining"
    service.runner.allow(10)
    assert b'"completion_tokens":5' in read_until(running, b"decode_seconds")
    drain.join(5.0)


def test_stopping_ends_a_running_stream_with_an_error_event(new_service, scripted, send):
    service = new_service(scripted(manual=True))
    running = send(service, "running", max_tokens=50, stream=True)
    read_until(running, b"\n\n")
    stop = threading.Thread(target=service.engine.stop)
    stop.start()
    assert b"shutting_down" in read_until(running, b"shutting_down")
    service.runner.allow(5)
    stop.join(5.0)


def test_eight_clients_at_once_all_get_their_own_answers(new_service, scripted, send):
    script = {b"client %d" % i: b"%d" % i * 9 for i in range(8)}
    service = new_service(scripted(slots=4, script=script))
    answers = {}

    def ask(index):
        body = service.complete(f"client {index}", max_tokens=20 + index, stream=False).json()
        answers[index] = body["choices"][0]["text"]

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10.0)
    assert answers == {index: str(index) * (20 + index) for index in range(8)}


def test_a_body_that_does_not_come_is_a_408(new_service, send):
    service = new_service(limits=HttpLimits(body_seconds=0.1))
    connection = service.connect()
    connection.sendall(service.head("/v1/completions", "Content-Length: 1000") + b'{"prompt": "hel')
    answer = read_until(connection, b"}}")
    assert answer.startswith(b"HTTP/1.1 408 ") and b"Content-Length" in answer
    assert connection.recv(1) == b""
    connection.close()
    still_right(service)
