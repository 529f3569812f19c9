"""What one stream brings, whoever runs beside it."""

import itertools

import pytest
from helpers import until

from lean.leanserve.request import Generated, Refusal

EOS = 256


def texts(events):
    return [event.text for event in events]


def test_a_stream_brings_exactly_the_tokens_of_the_runner(new_engine, scripted):
    engine = new_engine(scripted(script={b"hi": b"abcdef"}))
    _, sink = engine.ask(b"hi", max_tokens=4)
    events = sink.all()
    assert [event.choice.token for event in events] == list(b"abcd")
    assert texts(events) == ["a", "b", "c", "d"]
    assert [event.finish for event in events] == [None, None, None, "length"]


def test_one_token_is_a_whole_stream(new_engine, scripted):
    engine = new_engine(scripted(script={b"hi": b"abc"}))
    _, sink = engine.ask(b"hi", max_tokens=1)
    (event,) = sink.all()
    assert (event.text, event.finish) == ("a", "length")
    assert engine.runner.buckets_used() == []


def test_only_one_thread_ever_touches_the_runner(new_engine, scripted):
    engine = new_engine(scripted())
    for sink in [engine.ask(b"x%d" % i)[1] for i in range(6)]:
        sink.all()
    assert len(engine.runner.threads) == 1


@pytest.mark.parametrize("bucket", [2, 4])
def test_with_a_pinned_bucket_a_stream_is_the_same_whatever_its_neighbours(new_engine, scripted, bucket):
    alone = new_engine(scripted(), pinned_bucket=bucket)
    expected = texts(alone.ask(b"the stream", max_tokens=40)[1].all())
    crowded = new_engine(scripted(), pinned_bucket=bucket)
    crowd = [crowded.ask(b"neighbour %d" % i, max_tokens=5 + 9 * i)[1] for i in range(6)]
    _, sink = crowded.ask(b"the stream", max_tokens=40)
    crowd += [crowded.ask(b"later %d" % i, max_tokens=7 * i + 1)[1] for i in range(4)]
    assert texts(sink.all()) == expected
    for other in crowd:
        other.all()


def test_a_stream_is_the_same_while_neighbours_come_and_go_in_its_bucket(new_engine, scripted):
    def run(neighbour_steps):
        engine = new_engine(scripted(slots=2, manual=True), queue_limit=8)
        engine.ask(b"first", max_tokens=2)
        _, sink = engine.ask(b"the stream", max_tokens=30)
        engine.runner.allow(1)
        tokens = [sink.next().choice.token]
        for step in range(29):
            if step in neighbour_steps:
                engine.ask(b"joins at %d" % step, max_tokens=3)
            engine.runner.allow(1)
            tokens.append(sink.next().choice.token)
        armed = {call[2] for call in engine.runner.calls if call[0] == "decode"}
        return tokens, set(engine.runner.buckets_used()[2:]), (0, 1) in armed

    alone, crowded = run(()), run((4, 5, 11, 20))
    assert alone[:2] == crowded[:2]
    assert crowded[1:] == ({2}, True)


def test_eos_ends_a_stream_and_adds_no_text(new_engine, scripted):
    engine = new_engine(scripted(script={b"hi": [*b"ab", EOS, *b"cd"]}))
    _, sink = engine.ask(b"hi", stop_tokens=frozenset({EOS}))
    events = sink.all()
    assert ("".join(texts(events)), events[-1].finish, len(events)) == ("ab", "stop", 3)


def test_without_stop_tokens_eos_is_a_token_like_any_other(new_engine, scripted):
    engine = new_engine(scripted(script={b"hi": [*b"ab", EOS, *b"cd"]}))
    _, sink = engine.ask(b"hi", max_tokens=5)
    events = sink.all()
    assert ("".join(texts(events)), events[-1].finish, len(events)) == ("abcd", "length", 5)


def test_a_stop_string_ends_a_stream_at_the_token_that_completes_it(new_engine, scripted):
    engine = new_engine(scripted(script={b"hi": b"one. two. three"}))
    _, sink = engine.ask(b"hi", max_tokens=15, stop_strings=(". t",))
    events = sink.all()
    assert ("".join(texts(events)), events[-1].finish, len(events)) == ("one", "stop", 6)


def test_text_that_may_become_a_stop_string_is_held_back_and_then_set_free(new_engine, scripted):
    engine = new_engine(scripted(script={b"hi": b"a..b"}))
    _, sink = engine.ask(b"hi", max_tokens=4, stop_strings=("...",))
    assert texts(sink.all()) == ["a", "", "", "..b"]


def test_held_back_text_comes_with_the_last_token(new_engine, scripted):
    engine = new_engine(scripted(script={b"hi": b"a.."}))
    _, sink = engine.ask(b"hi", max_tokens=3, stop_strings=("...",))
    assert texts(sink.all()) == ["a", "", ".."]


def test_stop_strings_do_not_count_before_min_tokens(new_engine, scripted):
    engine = new_engine(scripted(script={b"hi": b"a.b.c.d."}))
    _, sink = engine.ask(b"hi", max_tokens=8, stop_strings=(".",), min_tokens=5)
    events = sink.all()
    assert ("".join(texts(events)), len(events)) == ("a.b.c", 6)


def test_half_a_character_waits_for_its_other_half(new_engine, scripted):
    engine = new_engine(scripted(script={b"hi": "é€".encode()}))
    _, sink = engine.ask(b"hi", max_tokens=5)
    assert texts(sink.all()) == ["", "é", "", "", "€"]


def test_half_a_character_at_the_real_end_becomes_the_replacement_character(new_engine, scripted):
    engine = new_engine(scripted(script={b"hi": "é€".encode()}))
    _, sink = engine.ask(b"hi", max_tokens=4)
    assert texts(sink.all()) == ["", "é", "", "\N{REPLACEMENT CHARACTER}"]


def test_the_last_token_tells_where_the_time_went(new_engine, scripted):
    engine = new_engine(scripted())
    _, sink = engine.ask(b"hi", max_tokens=3)
    *before, last = sink.all()
    assert all(isinstance(event, Generated) and event.timings is None for event in before)
    assert min(last.timings.queue_seconds, last.timings.prefill_seconds, last.timings.decode_seconds) >= 0


def test_a_long_prompt_goes_in_by_chunks_while_other_streams_keep_flowing(new_engine, scripted):
    engine = new_engine(scripted(manual=True))
    _, running = engine.ask(b"running", max_tokens=50)
    running.next()
    _, long = engine.ask(b"p" * 100, max_tokens=2)
    engine.runner.allow(10)
    long.next()
    calls = [call for call in engine.runner.calls if call[0] != "release"]
    chunks = [index for index, call in enumerate(calls) if call[:2] == ("prefill", 1)]
    assert [calls[index][2] for index in chunks] == [16] * 6 + [4]
    between = [calls[a + 1 : b] for a, b in itertools.pairwise(chunks)]
    assert all([call[0] for call in step] == ["decode"] for step in between)


def test_a_prompt_alone_goes_in_by_larger_chunks(new_engine, scripted):
    engine = new_engine(scripted(), lone_chunk_tiles=4)
    engine.ask(b"p" * 100, max_tokens=2)[1].all()
    assert [call[2] for call in engine.runner.calls if call[0] == "prefill"][1:] == [64, 36]


def crowd(engine, count, **fields):
    """Streams that ask while a step is under way, so that they wait together."""
    _, running = engine.ask(b"running", max_tokens=40)
    running.next()
    engine.runner.await_call("decode")
    asked = [engine.ask(b"stream %d" % i, max_tokens=6, **fields) for i in range(count)]
    return running, asked


def test_short_prompts_that_wait_together_go_to_the_runner_together(new_engine, scripted):
    engine = new_engine(scripted(slots=4, manual=True, prefill_tile=256))
    _, asked = crowd(engine, 3)
    engine.runner.allow(50)
    for _, sink in asked:
        sink.all()
    assert engine.runner.together[2:] == [(1, 2, 3)]  # behind the engine's own and the running one's


def test_what_goes_in_together_is_a_tile_s_worth_between_two_steps(new_engine, scripted):
    engine = new_engine(scripted(slots=8, manual=True, prefill_tile=128))
    _, asked = crowd(engine, 5)
    engine.runner.allow(50)
    for _, sink in asked:
        sink.all()
    assert engine.runner.together[2:] == [(1, 2), (3, 4), (5,)]  # each counts as 64 tokens
    between = [call[0] for call in engine.runner.calls if call[0] != "release"]
    groups = [(name, len(list(calls))) for name, calls in itertools.groupby(between)][4:]
    assert groups[:5] == [("prefill", 2), ("decode", 1), ("prefill", 2), ("decode", 1), ("prefill", 1)]


def test_what_a_short_prompt_takes_of_a_tile_is_the_runner_s_own_grain(new_engine, scripted):
    engine = new_engine(scripted(slots=8, manual=True, prefill_tile=128, prefill_grain=32))
    _, asked = crowd(engine, 5)
    engine.runner.allow(50)
    for _, sink in asked:
        sink.all()
    assert engine.runner.together[2:] == [(1, 2, 3, 4), (5,)]


def test_a_stream_is_the_same_whether_its_prompt_went_in_alone_or_with_others(new_engine, scripted):
    alone = new_engine(scripted(slots=4), pinned_bucket=4)
    expected = texts(alone.ask(b"stream 1", max_tokens=6)[1].all())
    engine = new_engine(scripted(slots=4, manual=True, prefill_tile=256), pinned_bucket=4)
    _, asked = crowd(engine, 3)
    engine.runner.allow(50)
    assert texts(asked[1][1].all()) == expected
    assert (1, 2, 3) in engine.runner.together


def cancels_in_prefill(engine, victim):
    """Let the client of `victim` leave while its prompt goes in."""
    prefill = engine.runner.prefill

    def leaving(pieces):
        choices = prefill(pieces)
        engine.cancel(victim)
        return choices

    engine.runner.prefill = leaving


def test_a_stream_cancelled_while_prompts_go_in_together_gets_nothing_and_no_step(new_engine, scripted):
    engine = new_engine(scripted(slots=4, manual=True, prefill_tile=256), pinned_bucket=4)
    _, asked = crowd(engine, 3)
    cancels_in_prefill(engine, asked[1][0])
    engine.runner.allow(50)
    kept = [texts(asked[i][1].all()) for i in (0, 2)]
    assert asked[1][1].events.empty()
    assert ("release", 2) in engine.runner.calls
    assert not any(call[0] == "decode" and 2 in call[2] for call in engine.runner.calls)
    alone = new_engine(scripted(slots=4), pinned_bucket=4)
    assert kept == [texts(alone.ask(b"stream %d" % i, max_tokens=6)[1].all()) for i in (0, 2)]


def test_a_stream_cancelled_before_its_prompt_s_turn_leaves_the_others_together(new_engine, scripted):
    engine = new_engine(scripted(slots=4, manual=True, prefill_tile=256))
    _, asked = crowd(engine, 3)
    engine.cancel(asked[1][0])
    engine.runner.allow(50)
    for i in (0, 2):
        asked[i][1].all()
    assert engine.runner.together[2:] == [(1, 2)]
    assert asked[1][1].events.empty()


def test_one_that_is_refused_keeps_nobody_from_going_in_together(new_engine, scripted):
    engine = new_engine(scripted(slots=4, manual=True, prefill_tile=256, max_length=128), queue_limit=0)
    _, asked = crowd(engine, 2)
    with pytest.raises(ValueError, match="128 positions"):
        engine.ask(b"p" * 127, max_tokens=2)
    asked.append(engine.ask(b"last", max_tokens=6))
    with pytest.raises(Refusal):
        engine.ask(b"one too many", max_tokens=2)
    engine.runner.allow(50)
    assert [len(sink.all()) for _, sink in asked] == [6, 6, 6]
    assert engine.runner.together[2:] == [(1, 2, 3)]


def test_a_runner_that_fails_on_one_of_several_prompts_takes_all_with_it(new_engine, scripted, capfd):
    engine = new_engine(scripted(slots=4, manual=True, prefill_tile=256, fail_prefill=b"stream 1"))
    running, asked = crowd(engine, 3)
    engine.runner.allow(50)
    for sink in (running, *(sink for _, sink in asked)):
        assert sink.failure().refusal.kind == "failed"
    until(lambda: engine.status().state == "failed")
    calls = len(engine.runner.calls)
    assert engine.runner.calls[-1][:2] == ("prefill", 2)
    assert (engine.status().running, len(engine.runner.calls)) == (0, calls)
    assert "fell off the bus" in capfd.readouterr().err


def test_a_runner_that_answers_for_fewer_prompts_than_it_got_has_failed(new_engine, scripted, capfd):
    engine = new_engine(scripted(slots=4, manual=True, prefill_tile=256))
    _, asked = crowd(engine, 2)
    prefill = engine.runner.prefill
    engine.runner.prefill = lambda pieces: prefill(pieces)[:1]
    engine.runner.allow(50)
    assert asked[1][1].failure().refusal.kind == "failed"
    assert "ValueError" in capfd.readouterr().err
