"""How pieces of prompts are laid into prompt programs."""

from __future__ import annotations

import pytest

from lean.leanserve.cuda.packing import Group, pack_pieces, program_sizes

SIZES = (64, 256, 1024)


@pytest.mark.parametrize(
    ("rows", "programs"),
    [
        (64, [64]),
        (128, [256]),
        (256, [256]),
        (320, [256, 64]),
        (512, [256, 256]),
        (576, [256, 256, 64]),
        (832, [1024]),
        (1024, [1024]),
        (1088, [1024, 64]),
        (2112, [1024, 1024, 64]),
    ],
)
def test_rows_go_in_the_programs_that_take_the_least_time(rows: int, programs: list[int]) -> None:
    assert program_sizes(rows, SIZES) == programs


def test_a_runner_with_one_program_uses_it_again_and_again() -> None:
    assert program_sizes(192, (64,)) == [64, 64, 64]
    assert program_sizes(0, SIZES) == []


def test_four_short_prompts_share_one_program() -> None:
    (program,) = pack_pieces([64, 1, 64, 63], SIZES)
    assert program.rows == 256
    assert [(group.piece, group.count, group.ends) for group in program.groups] == [
        (0, 64, True),
        (1, 1, True),
        (2, 64, True),
        (3, 63, True),
    ]


def test_a_piece_goes_on_in_the_next_program_where_the_last_one_ended() -> None:
    first, second = pack_pieces([65, 200], SIZES)
    assert (first.rows, second.rows) == (256, 256)
    assert first.groups[1] == Group(piece=0, start=64, count=1, ends=True)
    assert [(group.start, group.count) for group in second.groups] == [(128, 64), (192, 8)]


@pytest.mark.parametrize("lengths", [[1], [64] * 8, [1088] * 8, [5, 700, 64, 65], [1024, 1], [63, 129, 1, 2]])
def test_every_token_goes_in_once_and_in_order_and_no_two_pieces_share_a_group(lengths: list[int]) -> None:
    programs = list(pack_pieces(lengths, SIZES))
    groups = [group for program in programs for group in program.groups]
    assert all(64 * len(program.groups) <= program.rows for program in programs)
    assert all(program.groups for program in programs)
    went = [(group.piece, group.start + i) for group in groups for i in range(group.count)]
    assert went == [(piece, token) for piece, length in enumerate(lengths) for token in range(length)]
    assert [group.piece for group in groups if group.ends] == list(range(len(lengths)))
