"""A tool's own words, fit to be published."""

from __future__ import annotations

import re
import sysconfig


def public(text: str) -> str:
    """`text` without folders of this machine: where packages are installed, where a compile was staged."""
    for place in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        text = text.replace(f"{place}/", "")
    return re.sub(r"[^\s\"']*/leanstack-aot-\w+/", "", text)
