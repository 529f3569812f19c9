"""A data file is found by its name, held to its hash, and read without trusting a line of it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from lean.contracts.soak import DataFile
from lean.errors import ContractError, IntegrityError, NotReadyError
from lean.soak import data as soak_data
from lean.soak.data import find_data, read_objects


def pinned(content: bytes, name: str = "mine.jsonl") -> DataFile:
    return DataFile(file=name, sha256=hashlib.sha256(content).hexdigest())


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """The release's and the host's; the host's does not exist until something was pushed."""
    (tmp_path / "release").mkdir()
    return tmp_path / "release", tmp_path / "host"


def test_the_releases_file_comes_first_and_the_hosts_where_there_is_none(folders: tuple[Path, Path]) -> None:
    release, host = folders
    host.mkdir()
    (host / "mine.jsonl").write_bytes(b"pushed")
    assert find_data(pinned(b"pushed"), folders) == host / "mine.jsonl"
    (release / "mine.jsonl").write_bytes(b"shipped")
    assert find_data(pinned(b"shipped"), folders) == release / "mine.jsonl"


def test_another_hash_is_an_error_that_names_both_and_the_fix(folders: tuple[Path, Path]) -> None:
    (folders[0] / "mine.jsonl").write_bytes(b"altered")
    with pytest.raises(IntegrityError) as caught:
        find_data(pinned(b"pinned"), folders)
    message = str(caught.value)
    assert all(hashlib.sha256(content).hexdigest() in message for content in (b"altered", b"pinned"))
    assert str(folders[0] / "mine.jsonl") in message and "pin this one in the plan" in message


def test_a_file_that_is_nowhere_says_how_to_push_it(folders: tuple[Path, Path]) -> None:
    (folders[0] / "mine.jsonl").mkdir()  # no file either
    with pytest.raises(NotReadyError) as caught:
        find_data(pinned(b""), folders)
    command = f"invoke remote.push --source mine.jsonl --target {folders[1]}/mine.jsonl"
    assert command in str(caught.value)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "line 1: empty"),
        (b"\n", "line 1: empty"),
        (b"{}\n\n{}\n", "line 2: empty"),
        (b"{}\n{}\n\n", "line 3: empty"),
        (b'{}\n{"a": 1, "a": 2}\n', "line 2: duplicate key 'a'"),
        (b"{}\n[]\n", "line 2: expected a JSON object"),
        (b'{}\n{"a": "\xff"}\n', "line 2: not UTF-8"),
        (b'{}\n{"a": NaN}\n', "line 2: NaN"),
        (b"{}\n{\n", "line 2: not JSON"),
        (b"\xef\xbb\xbf{}\n", "line 1: not JSON"),
        (b'{"a": "' + b"x" * soak_data.MAX_LINE + b'"}\n', "line 1: more than 1 MiB"),
    ],
)
def test_a_line_that_is_no_object_is_named_by_its_number(tmp_path: Path, content: bytes, why: str) -> None:
    file = tmp_path / "lines.jsonl"
    file.write_bytes(content)
    with pytest.raises(ContractError, match=why) as caught:
        list(read_objects(file))
    assert str(caught.value).startswith(str(file))


def test_lines_may_end_as_on_windows_and_the_last_one_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "lines.jsonl").write_bytes(b'{"a": 1}\r\n{"a": 2}')
    assert list(read_objects(tmp_path / "lines.jsonl")) == [(1, {"a": 1}), (2, {"a": 2})]


def test_a_file_larger_than_a_slice_should_be_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soak_data, "MAX_BYTES", 1 << 20)
    (tmp_path / "whole.json").write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(ContractError, match=r"more than 1 MiB; cut a slice"):
        soak_data.read_whole(tmp_path / "whole.json")
    with pytest.raises(ContractError, match=r"none\.json: No such file"):
        soak_data.read_whole(tmp_path / "none.json")
