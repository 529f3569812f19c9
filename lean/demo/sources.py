"""English text that any Debian machine carries: manual pages and the Python standard library's documentation.

Manual pages are taken only where a Debian package owns them, so that locally installed tools do not change
the corpus, and are rendered with groff (package groff-base), which resolves macros and tables the way
`man` does.
"""

from __future__ import annotations

import ast
import gzip
import inspect
import os
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

GROFF = (  # one long line a paragraph: nothing adjusted, hyphenated or emphasised
    "groff",
    "-Tutf8",
    "-mandoc",
    "-t",
    "-k",
    "-P-c",
    "-P-b",
    "-P-o",
    "-P-u",
    "-dAD=l",
    "-rHY=0",
    "-rLL=1000n",
)
TYPOGRAPHY = str.maketrans(
    {
        "‘": "'",
        "’": "'",
        "“": '"',
        "”": '"',
        "‐": "-",
        "‑": "-",
        "–": "-",
        "−": "-",
        "—": "-",
        "·": "*",
        "•": "*",
    }
    | {"´": "'", "\u00a0": " ", "\u00ad": "", "ˆ": "^", "˜": "~", "…": "..."}
)
MAX_PAGES_PER_PACKAGE = (
    5000  # a generated command tree (17,000 near-equal pages were met) would drown the rest
)
SECTION_INDENT = 7  # groff's man macros start body text in this column
SKIPPED_SECTIONS = re.compile(
    r"^(SEE ALSO|AUTHORS?|COPYRIGHT|COPYING|LICEN[SC]E|REPORTING BUGS|BUGS? REPORTS?|COLOPHON|HISTORY)\b"
)
SKIPPED_MODULES = {
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "site-packages",
    "pydoc_data",
    "__pycache__",
    "idle_test",
}


@dataclass(frozen=True, slots=True)
class Document:
    """One page or module. `text` is paragraphs separated by blank lines; a heading stands in its own
    paragraph.
    """

    name: str
    text: str


def manual_pages(man_root: Path, dpkg_info: Path | None) -> Iterator[Document]:
    """Every English manual page below `man_root`, sorted by name; only package-owned ones when
    `dpkg_info` is given.
    """
    owned = page_owners(dpkg_info) if dpkg_info else None
    pages = (path for path in man_root.glob("man[1-8]/*.gz") if not path.is_symlink())
    paths = sorted(path for path in pages if owned is None or str(path) in owned)
    with ThreadPoolExecutor(2) as pool:
        for path, rendered in zip(paths, pool.map(_render, paths), strict=True):
            text = clean_manual_page(rendered)
            if text:
                yield Document(f"{path.parent.name}/{path.name.removesuffix('.gz')}", text)


def page_owners(dpkg_info: Path) -> dict[str, str]:
    """Path of each manual page that a Debian package installed -> that package, from dpkg's file lists."""
    owners: dict[str, str] = {}
    for listing in sorted(dpkg_info.glob("*.list")):
        pages = [line for line in listing.read_text().splitlines() if line.startswith("/usr/share/man/man")]
        if len(pages) <= MAX_PAGES_PER_PACKAGE:
            owners |= dict.fromkeys(pages, listing.stem)
    return owners


def _render(path: Path) -> str:
    """Plain text of one page, or nothing when the file is only an include of another page."""
    roff = gzip.decompress(path.read_bytes())
    if roff.lstrip().startswith(b".so "):
        return ""
    environment = os.environ | {"LC_ALL": "C.UTF-8"}
    done = subprocess.run(GROFF, input=roff, capture_output=True, env=environment, check=False)
    return done.stdout.decode("utf-8", "replace")


def clean_manual_page(rendered: str) -> str:
    """Drop running header and footer, reference and licence sections, and most of the indentation."""
    lines = [line.rstrip() for line in rendered.translate(TYPOGRAPHY).splitlines()]
    filled = [i for i, line in enumerate(lines) if line]
    kept: list[str] = []
    skipping = False
    for line in lines[filled[0] + 1 : filled[-1]] if filled else []:
        if line and not line[0].isspace():
            skipping = bool(SKIPPED_SECTIONS.match(line.upper()))
            kept += [] if skipping else ["", line, ""]
        elif not skipping:
            kept.append(_reindent(line))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip()


def _reindent(line: str) -> str:
    body = line.lstrip()
    depth = max(0, len(line) - len(body) - SECTION_INDENT) // 2
    return " " * min(depth, 12) + re.sub(r"(?<=\S) {3,}", "  ", body)


def library_docstrings(stdlib: Path) -> Iterator[Document]:
    """One document a module: its docstring, then each public definition's signature and docstring."""
    for path in sorted(stdlib.rglob("*.py")):
        parts = path.relative_to(stdlib).with_suffix("").parts
        if SKIPPED_MODULES.isdisjoint(parts):
            module = ".".join(parts).removesuffix(".__init__")
            text = "\n\n".join(_documented(ast.parse(path.read_bytes()), module)).translate(TYPOGRAPHY)
            if text:
                yield Document(f"python/{module}", text)


def _documented(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str
) -> Iterator[str]:
    docstring = ast.get_docstring(node)
    if docstring:
        arguments = node.args if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else None
        yield f"{name}({ast.unparse(arguments)})" if arguments else name
        yield inspect.cleandoc(docstring)
    for child in node.body:
        if isinstance(
            child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        ) and not child.name.startswith("_"):
            yield from _documented(child, f"{name}.{child.name}")


def language_topics(stdlib: Path) -> Iterator[Document]:
    """The language reference as `help()` shows it, one document a topic (a dictionary in pydoc_data)."""
    path = stdlib / "pydoc_data" / "topics.py"
    if not path.exists():
        return
    assignment = ast.parse(path.read_bytes()).body[-1]
    if isinstance(assignment, ast.Assign | ast.AnnAssign) and assignment.value is not None:
        topics: dict[str, str] = ast.literal_eval(assignment.value)
        for topic in sorted(topics):
            yield Document(f"python-topic/{topic}", _join_wrapped(topics[topic].translate(TYPOGRAPHY)))


def _join_wrapped(text: str) -> str:
    """Undo hard wrapping inside unindented paragraphs, as manual pages here are not wrapped either."""
    return "\n\n".join(
        block if re.search(r"^\s", block, re.M) else re.sub(r"\n(?=\w)", " ", block)
        for block in text.split("\n\n")
    )
