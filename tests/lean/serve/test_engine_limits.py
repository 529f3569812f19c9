"""Buckets, the queue, cancelling, draining, stopping and a runner that fails."""

import threading

import pytest
from helpers import until

from lean.errors import IntegrityError
from lean.leanserve.engine import Engine, EngineSettings
from lean.leanserve.region_times import RegionLog
from lean.leanserve.request import Failed, Generated, Refusal
from lean.leanserve.stats import ServiceStats
from lean.regions.summary import read_regions


def test_the_bucket_is_the_smallest_that_holds_the_streams_and_grows_when_one_joins(new_engine, scripted):
    engine = new_engine(scripted(slots=8, manual=True))
    for joined, expected in enumerate((1, 2, 4, 4, 8)):
        engine.ask(b"stream %d" % joined, max_tokens=60)
        if joined:
            engine.runner.allow(1)
        engine.runner.await_call("decode", expected, tuple(range(joined + 1)))


def test_the_bucket_never_shrinks_while_a_stream_lives_and_starts_small_again(new_engine, scripted):
    engine = new_engine(scripted(slots=4))
    long = engine.ask(b"long", max_tokens=200)[1]
    shorts = [engine.ask(b"short %d" % i, max_tokens=3)[1] for i in range(3)]
    for sink in (*shorts, long):
        sink.all()
    used = engine.runner.buckets_used()
    assert used == sorted(used)
    assert used[-1] == 4
    until(lambda: engine.status().bucket == 0)
    engine.ask(b"alone", max_tokens=3)[1].all()
    assert engine.runner.buckets_used()[-1] == 1


def test_a_pinned_bucket_is_used_from_the_first_step(new_engine, scripted):
    engine = new_engine(scripted(slots=4), pinned_bucket=4)
    engine.ask(b"alone", max_tokens=5)[1].all()
    assert set(engine.runner.buckets_used()) == {4}


def test_a_bucket_pinned_below_the_slots_leaves_the_others_empty(new_engine, scripted):
    engine = new_engine(scripted(slots=4), pinned_bucket=2, queue_limit=8)
    for sink in [engine.ask(b"stream %d" % i, max_tokens=6)[1] for i in range(6)]:
        sink.all()
    assert set(engine.runner.buckets_used()) == {2}
    assert {call[1] for call in engine.runner.calls if call[0] == "prefill"} == {0, 1}


def test_a_cancelled_stream_leaves_its_slot_before_the_next_step(new_engine, scripted):
    engine = new_engine(scripted(slots=2, manual=True))
    stream, _ = engine.ask(b"cancelled", max_tokens=100)
    _, other = engine.ask(b"stays", max_tokens=100)
    engine.runner.allow(3)
    for _ in range(3):
        other.next()
    engine.runner.await_call("decode", 2, (0, 1))
    engine.cancel(stream)
    seen = len(engine.runner.calls)
    engine.runner.allow(2)
    other.next(), other.next()
    after = engine.runner.calls[seen:]
    steps_with_it = [call for call in after if call[0] == "decode" and 0 in call[2]]
    assert steps_with_it == []  # the step that was under way had been called before
    assert after[0] == ("release", 0)


def test_a_freed_slot_goes_to_the_next_in_the_queue(new_engine, scripted):
    engine = new_engine(scripted(slots=1, manual=True), queue_limit=2)
    stream, first = engine.ask(b"first", max_tokens=100)
    first.next()
    _, second = engine.ask(b"second", max_tokens=2)
    engine.cancel(stream)
    engine.runner.allow(3)
    assert len(second.all()) == 2


def test_cancelling_in_the_queue_frees_the_place_at_once(new_engine, scripted):
    engine = new_engine(scripted(slots=1, manual=True), queue_limit=1)
    engine.ask(b"first", max_tokens=100)[1].next()
    waiting, sink = engine.ask(b"waits", max_tokens=2)
    with pytest.raises(Refusal):
        engine.ask(b"too many")
    engine.cancel(waiting)
    assert engine.status().waiting == 0
    engine.ask(b"fits now", max_tokens=2)
    assert sink.events.empty()


def test_cancelling_in_prefill_stops_the_prefill(new_engine, scripted):
    engine = new_engine(scripted(slots=2, manual=True))
    engine.ask(b"running", max_tokens=100)[1].next()
    stream, sink = engine.ask(b"p" * 200, max_tokens=2)
    engine.runner.allow(3)
    until(lambda: sum(call[:2] == ("prefill", 1) for call in engine.runner.calls) >= 3)
    engine.cancel(stream)
    engine.runner.allow(20)
    until(lambda: engine.status().running == 1)
    assert sum(call[2] for call in engine.runner.calls if call[:2] == ("prefill", 1)) < 200
    assert sink.events.empty()


def test_cancelling_leaves_the_other_streams_byte_identical(new_engine, scripted):
    def run(cancel_after):
        engine = new_engine(scripted(slots=4, manual=True), pinned_bucket=4, queue_limit=4)
        victims = [engine.ask(b"victim %d" % i, max_tokens=90) for i in range(2)]
        _, kept = engine.ask(b"kept", max_tokens=40)
        engine.runner.allow(2)
        kept.next()
        tokens = []
        for step in range(39):
            if step == cancel_after:
                for stream, _ in victims:
                    engine.cancel(stream)
            engine.runner.allow(1)
            tokens.append(kept.next().choice.token)
        return tokens

    assert run(7) == run(None)


def test_a_full_queue_refuses_and_keeps_what_it_has(new_engine, scripted):
    engine = new_engine(scripted(slots=1, manual=True), queue_limit=2)
    sinks = [engine.ask(b"stream %d" % i, max_tokens=3)[1] for i in range(3)]
    with pytest.raises(Refusal, match="2 queue places") as refused:
        engine.ask(b"one too many")
    assert refused.value.kind == "full"
    engine.runner.allow(20)
    assert [len(sink.all()) for sink in sinks] == [3, 3, 3]
    assert len(engine.ask(b"and again", max_tokens=2)[1].all()) == 2


def test_a_request_longer_than_a_slot_is_a_callers_error(new_engine, scripted):
    engine = new_engine(scripted(max_length=32))
    with pytest.raises(ValueError, match="32 positions"):
        engine.ask(b"p" * 30, max_tokens=3)


def test_draining_refuses_new_requests_and_finishes_the_accepted_ones(new_engine, scripted):
    engine = new_engine(scripted(slots=1, manual=True), queue_limit=4)
    _, running = engine.ask(b"running", max_tokens=5)
    _, waiting = engine.ask(b"waiting", max_tokens=5)
    running.next()
    drained = []
    drain = threading.Thread(target=lambda: drained.append(engine.drain(10.0)))
    drain.start()
    until(lambda: engine.status().state == "draining")
    with pytest.raises(Refusal) as refused:
        engine.ask(b"too late")
    assert refused.value.kind == "draining"
    engine.runner.allow(20)
    assert (len(running.all()), len(waiting.all())) == (4, 5)
    drain.join(5.0)
    assert drained == [True]


def test_draining_gives_up_at_its_limit_and_stopping_ends_what_is_left(new_engine, scripted):
    engine = new_engine(scripted(slots=1, manual=True))
    _, sink = engine.ask(b"running", max_tokens=100)
    assert engine.drain(0.05) is False
    engine.runner.allow(1)
    engine.stop()
    assert sink.failure().refusal.kind == "stopped"
    assert engine.status().state == "stopped"


def test_a_failing_runner_fails_its_requests_and_nothing_runs_on_it_again(new_engine, scripted, capfd):
    engine = new_engine(scripted(slots=1, fail_decode_at=4), queue_limit=4)
    _, running = engine.ask(b"running", max_tokens=50)
    _, waiting = engine.ask(b"waiting", max_tokens=50)
    assert running.failure().refusal.kind == "failed"
    assert "fell off the bus" in str(waiting.failure().refusal)
    status = engine.status()
    assert (status.state, status.healthy) == ("failed", False)
    calls = len(engine.runner.calls)
    with pytest.raises(Refusal) as refused:
        engine.ask(b"afterwards")
    assert (refused.value.kind, len(engine.runner.calls)) == ("failed", calls)
    assert "fell off the bus" in capfd.readouterr().err


def test_regions_are_timed_from_the_first_request_to_the_stop(new_engine, scripted, tmp_path):
    log = RegionLog(tmp_path / "steps.jsonl", {})
    engine = new_engine(scripted(slots=1), regions=log)
    _, sink = engine.ask(b"running", max_tokens=5)
    sink.all()
    engine.stop()
    log.close()
    names = [call[0] for call in engine.runner.calls]
    assert names[:4] == ["prefill", "decode", "release", "time"]  # the first token was the engine's own
    assert engine.runner.calls[-1] == ("time", False)
    assert read_regions(log.path).steps == ()


def test_a_failing_runner_leaves_no_region_times_that_look_whole(new_engine, scripted, tmp_path, capfd):
    log = RegionLog(tmp_path / "steps.jsonl", {})
    engine = new_engine(scripted(slots=1, fail_decode_at=4), regions=log)
    _, running = engine.ask(b"running", max_tokens=50)
    assert running.failure().refusal.kind == "failed"
    engine.stop()
    log.close()
    with pytest.raises(IntegrityError):
        read_regions(log.path)
    assert "fell off the bus" in capfd.readouterr().err


def test_a_runner_that_does_not_load_makes_the_engine_fail_with_its_own_error():
    def no_device():
        raise OSError("no such device")

    engine = Engine(no_device, token_bytes=lambda token: b"", settings=EngineSettings(), stats=ServiceStats())
    engine.start()
    with pytest.raises(OSError, match="no such device"):
        engine.ready.result(timeout=5.0)
    assert engine.status().state == "failed"


def test_a_runner_that_does_not_answer_makes_the_engine_unhealthy_until_it_does(new_engine, scripted):
    engine = new_engine(scripted(slots=1, manual=True), stall_seconds=0.02)
    _, sink = engine.ask(b"hangs", max_tokens=2)
    sink.next()
    until(lambda: not engine.status().healthy)
    assert "has not answered" in engine.status().detail
    engine.runner.allow(1)
    sink.next()
    until(lambda: engine.status().healthy)


def test_a_runner_that_skips_a_slot_is_a_failure_and_not_a_silent_gap(new_engine, scripted, capfd):
    runner = scripted(slots=2)
    engine = new_engine(runner)
    decode = runner.decode
    runner.decode = lambda bucket, steps: [{} for _ in decode(bucket, steps)]
    _, sink = engine.ask(b"skipped", max_tokens=5)
    assert isinstance(sink.next(), Generated)
    assert isinstance(failure := sink.next(), Failed)
    assert "advanced slots [], expected [0]" in str(failure.refusal)
    assert "RuntimeError" in capfd.readouterr().err


def test_a_health_check_says_loading_before_the_first_token():
    release = threading.Event()

    def slow():
        release.wait(5.0)
        raise OSError("enough")

    engine = Engine(slow, token_bytes=lambda token: b"", settings=EngineSettings(), stats=ServiceStats())
    engine.start()
    assert (engine.status().state, engine.status().healthy) == ("loading", False)
    release.set()
    with pytest.raises(OSError, match="enough"):
        engine.ready.result(timeout=5.0)
