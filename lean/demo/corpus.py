"""Collect the demo's text into train, validation and held-out splits, without repeats.

    python -m lean.demo.corpus --out build/corpus

Deterministic given the machine: files in sorted order, the split of a document a hash of its name. The text
itself is never committed (its licences differ page by page); `corpus.json`, the record of what went in, is.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import re
import subprocess
import sysconfig
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from lean.demo.sources import Document, language_topics, library_docstrings, manual_pages, page_owners

SPLITS = ("train", "validation", "heldout")
BUCKETS = 32  # one bucket in 32 (3 %) is validation, one is held out
RUN = 15  # pieces; measured: no run of 31 tokens is left twice, where the copy check forbids 32
MIN_CHARACTERS = 240  # what must be left of a document after repeats are gone
PIECE = re.compile(r"[^\W\d_]{1,4}|\S")  # up to four letters, or one digit or sign: about a token
QUALIFIED_NAME = re.compile(r"^\w+(\.\w+)+(\(.*\))?$")  # or signature


class RepeatFilter:
    """Refuses text that would make a run of RUN pieces occur twice in what was accepted.

    Runs reach back over the text accepted before, so short lines (includes, lists of references) cannot add
    up to a long repeat either.
    """

    def __init__(self) -> None:
        self._seen: set[bytes] = set()
        self._tail: list[str] = []  # the last pieces accepted

    def accept(self, text: str) -> bool:
        pieces = self._tail + [piece.lower() for piece in PIECE.findall(text)]
        windows = (" ".join(pieces[i : i + RUN]) for i in range(len(pieces) - RUN + 1))
        runs = [hashlib.blake2b(window.encode(), digest_size=8).digest() for window in windows]
        fresh = len(set(runs)) == len(runs) and self._seen.isdisjoint(runs)
        if fresh:
            self._seen.update(runs)
            self._tail = pieces[-(RUN - 1) :]
        return fresh


def is_prose(paragraph: str) -> bool:
    """Mostly letters and blanks; tables, hexadecimal and line noise are not."""
    letters = sum(character.isalpha() or character == " " for character in paragraph)
    return letters >= 0.7 * len(paragraph) and len(paragraph) < 8000


def is_heading(paragraph: str) -> bool:
    """A line that titles what stands below it: a section, a python command, a name above its docstring."""
    return "\n" not in paragraph and (
        paragraph.isupper() or paragraph.startswith("python") or QUALIFIED_NAME.match(paragraph) is not None
    )


def without_repeats(document: Document, repeats: RepeatFilter) -> Document | None:
    """The document less its repeated paragraphs, and less headings that are left with nothing below them."""
    kept: list[str] = []
    heading: str | None = None
    for paragraph in document.text.split("\n\n"):
        if is_heading(paragraph):
            heading = paragraph
        elif paragraph.strip() and is_prose(paragraph):
            passage = paragraph if heading is None else f"{heading}\n\n{paragraph}"
            if repeats.accept(passage):
                kept.append(passage)
                heading = None
    text = "\n\n".join(kept)
    return Document(document.name, text) if len(text) >= MIN_CHARACTERS else None


def split_of(name: str) -> str:
    """The split that a document's name puts it in."""
    bucket = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % BUCKETS
    return {0: "heldout", 1: "validation"}.get(bucket, "train")


def collect(documents: Iterable[Document]) -> dict[str, list[Document]]:
    """Splits without repeats. Training text goes first: what it holds is struck from the other two."""
    by_split: dict[str, list[Document]] = {split: [] for split in SPLITS}
    for document in documents:
        by_split[split_of(document.name)].append(document)
    repeats = RepeatFilter()
    return {
        split: [kept for d in by_split[split] if (kept := without_repeats(d, repeats))] for split in SPLITS
    }


def read_split(folder: Path, split: str) -> Iterator[Document]:
    """The documents that `write_splits` left in `folder`."""
    with (folder / f"{split}.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            yield Document(**json.loads(line))


def write_splits(splits: dict[str, list[Document]], folder: Path) -> dict[str, Any]:
    """Write `<split>.jsonl` files; return counts, sources and hashes."""
    folder.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {}
    for split, documents in splits.items():
        content = "".join(
            json.dumps({"name": d.name, "text": d.text}, ensure_ascii=False) + "\n" for d in documents
        )
        (folder / f"{split}.jsonl").write_text(content, encoding="utf-8")
        sources: dict[str, int] = {}
        for document in documents:
            section = document.name.split("/")[0]
            sources[section] = sources.get(section, 0) + 1
        record[split] = {
            "documents": len(documents),
            "characters": sum(len(d.text) for d in documents),
            "documents_by_source": dict(sorted(sources.items())),
            "sha256": hashlib.sha256(content.encode()).hexdigest(),
        }
    return record


def packages_behind(documents: Iterable[Document], man_root: Path, dpkg_info: Path) -> list[str]:
    """`name version` of every Debian package that one of the manual pages came from, sorted."""
    owners = page_owners(dpkg_info)
    names = {owners.get(str(man_root / f"{document.name}.gz")) for document in documents} - {None}
    query = ["dpkg-query", "-W", "-f", "${binary:Package} ${Version}\n", *sorted(filter(None, names))]
    return sorted(subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the splits and corpus.json")
    parser.add_argument("--man", type=Path, default=Path("/usr/share/man"), help="root of the manual pages")
    parser.add_argument(
        "--stdlib", type=Path, default=Path(sysconfig.get_paths()["stdlib"]), help="Python library"
    )
    parser.add_argument(
        "--dpkg-info", type=Path, default=Path("/var/lib/dpkg/info"), help="who owns which page"
    )
    arguments = parser.parse_args()

    pages = manual_pages(arguments.man, arguments.dpkg_info)
    splits = collect(chain(pages, library_docstrings(arguments.stdlib), language_topics(arguments.stdlib)))
    packages = packages_behind(chain(*splits.values()), arguments.man, arguments.dpkg_info)
    record = {
        "schema": "demo-corpus/v1",
        "splits": write_splits(splits, arguments.out),
        "python": platform.python_version(),
        "debian": Path("/etc/debian_version").read_text().strip(),
        "packages": packages,
    }
    (arguments.out / "corpus.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record["splits"], indent=1))


if __name__ == "__main__":
    main()
