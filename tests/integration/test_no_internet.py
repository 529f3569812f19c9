"""Another system on a host without internet: the laptop downloads it, the host installs and serves it."""

from __future__ import annotations

import json
import shutil
import sys

import pytest

pytestmark = [
    pytest.mark.skipif(shutil.which("ssh") is None, reason="needs the OpenSSH client"),
]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_system_is_up_on_a_host_without_internet_from_packages_downloaded_here(checkout, demo) -> None:
    own = f"    venv: {sys.prefix}\n    python: {sys.executable}\n"
    words = ("remote.baseline-up", "--system", "transformers", "--threads", "1", "--json")
    with checkout.hosts(f"hosts:\n  loopback:\n{own}    internet: false\n"):
        dry = checkout.invoke(*words, "--dry-run")
        assert "download transformers[serving]==" in "\n".join(dry.document["would"])
        up = checkout.invoke(*words, timeout=800)
        down = checkout.invoke("remote.baseline-down", "--json")
    assert up.code == 0, up.stderr
    assert up.document["system"] == "transformers" and up.document["first_token_seconds"] > 0
    assert down.code == 0 and down.document["memory_returned"]
    home = checkout.path / ".lean" / "loopback" / "home" / "lean"
    status = json.loads((home / "jobs" / "baseline-install" / "status.json").read_text())
    (sent,) = (home / "tmp").glob("wheels-baseline-transformers-*")
    at = status["argv"].index("--bring")
    assert status["argv"][at + 1].endswith(sent.name)
    assert any(path.name.startswith("transformers-") for path in sent.iterdir())
    assert "packages, " in up.stderr
