"""The far end of a transfer, carried there on the command line: nothing has to be installed on the host."""

from __future__ import annotations

import base64
import functools
import json
import zlib

from remote.settings import REPOSITORY

PACKAGE = "lean.transfer"
# each imports only those before it
MODULES = ("channel", "tree", "stage", "send", "incoming", "commit", "receive", "release", "__main__")

_LOADER = """\
import base64, json, sys, types, zlib
if sys.version_info < (3, 10):
    print(json.dumps({{"error": {{"kind": "PreflightError", "message":
        "python %d.%d on the host; 3.10 or later is needed, name one as `python`" % sys.version_info[:2]}}}}))
    sys.exit(4)
for name, text in json.loads(zlib.decompress(base64.b64decode("{packed}"))):
    module = sys.modules[name] = types.ModuleType(name)
    module.__path__ = []
    exec(compile(text, name, "exec"), module.__dict__)
sys.exit(sys.modules["{package}.__main__"].main(sys.argv[1:]))
"""


@functools.cache
def carried_source() -> str:
    """Program text for `python3 -c`.

    The modules of `lean.transfer`, packed, and what unpacks them (about 14 kB).
    """
    folder = REPOSITORY.joinpath(*PACKAGE.split("."))
    texts = [("lean", ""), (PACKAGE, "")]
    texts += [(f"{PACKAGE}.{name}", (folder / f"{name}.py").read_text(encoding="utf-8")) for name in MODULES]
    packed = base64.b64encode(zlib.compress(json.dumps(texts).encode(), 9)).decode()
    return _LOADER.format(packed=packed, package=PACKAGE)


def carried_argv(python: str, *arguments: str) -> list[str]:
    """The program as argv. `-I`: nothing in the host's home or environment can get in between."""
    return [python, "-I", "-c", carried_source(), *arguments]
