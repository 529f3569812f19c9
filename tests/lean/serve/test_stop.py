"""Stop strings, wherever the text is cut."""

import random

import pytest

from lean.leanserve.text import StopFilter


def by_the_character(text, stops):
    """The plain meaning: read character by character, and cut off the longest stop string first complete."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


def fed(pieces, stops):
    stop = StopFilter(stops)
    text = ""
    for piece in pieces:
        passed, stopped = stop.feed(piece)
        text += passed
        if stopped:
            return text, True
    return text + stop.flush(), False


def test_every_cutting_gives_the_plain_meaning():
    chance = random.Random(5)
    for _ in range(3000):
        text = "".join(chance.choices("abc", k=chance.randint(0, 12)))
        stops = tuple(
            "".join(chance.choices("abc", k=chance.randint(1, 4))) for _ in range(chance.randint(1, 3))
        )
        cuts = sorted(chance.sample(range(len(text) + 1), k=min(3, len(text) + 1)))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        assert fed(pieces, stops) == by_the_character(text, stops), (pieces, stops)


def test_exactly_the_text_that_may_still_become_a_stop_string_is_held_back():
    chance = random.Random(6)
    for _ in range(1000):
        stop, passed, read = StopFilter(("abab",)), "", ""
        for letter in chance.choices("ab", k=10):
            piece, stopped = stop.feed(letter)
            passed, read = passed + piece, read + letter
            if stopped:
                assert passed + "abab" == read
                break
            held = max(count for count in range(4) if read.endswith("abab"[:count]))
            assert passed == read[: len(read) - held]


def test_without_stop_strings_everything_passes_at_once():
    assert StopFilter(()).feed("anything") == ("anything", False)


def test_matches_pass_while_stopping_is_not_allowed_yet():
    stop = StopFilter(("end",))
    assert stop.feed("the end is", may_stop=False) == ("the end is", False)
    assert stop.feed(" the end") == (" the ", True)


def test_a_match_that_begins_before_stopping_is_allowed_and_ends_after_counts():
    stop = StopFilter(("end",))
    assert stop.feed("the en", may_stop=False) == ("the ", False)
    assert stop.feed("d") == ("", True)


def test_an_empty_stop_string_is_refused():
    with pytest.raises(ValueError, match="non-empty"):
        StopFilter(("",))
