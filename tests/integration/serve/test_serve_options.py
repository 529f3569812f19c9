"""Options of a decode step through the real service: they take effect, say so, and leave their evidence."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lean.bench.served import backend_of
from lean.regions.summary import read_regions

PROMPT, NEW = "If the file cannot be read", 24


def text_of(served: Any) -> str:
    body = {"prompt": PROMPT, "max_tokens": NEW, "temperature": 0, "ignore_eos": True}
    body["model"] = served.ready["contract"]
    with served.client() as client:
        return str(client.post("/v1/completions", json=body).json()["choices"][0]["text"])


def test_the_setting_in_effect_is_read_back_and_every_step_has_a_row(
    demo_pack: Path, start_service: Callable[..., Any], tmp_path: Path
) -> None:
    plain = start_service(pack=demo_pack)
    assert plain.ready["runner"]["split_k"] is None and plain.ready["regions"] is None
    assert backend_of(plain.ready).options == ()
    expected = text_of(plain)

    times = tmp_path / "times" / "steps.jsonl"
    served = start_service("--split-k", "4", "--regions", str(times), pack=demo_pack)
    assert served.ready["runner"]["split_k"] == 4 == served.ready["plan"]["split_k"]
    assert served.ready["regions"] == str(times)
    assert backend_of(served.ready).options == (
        "split-K 4 of the output projection",
        "region timing inside each step",
    )
    assert text_of(served) == expected
    served.signal(signal.SIGTERM)
    assert served.ended()[0] == 0
    found = read_regions(times)
    assert found.about["lock"] == served.ready["lock"]
    assert len(found.steps) == NEW - 1  # the first token comes from the prompt


def test_a_file_of_times_is_never_written_over(
    demo_pack: Path, start_service: Callable[..., Any], tmp_path: Path
) -> None:
    times = tmp_path / "steps.jsonl"
    times.write_text("of another service\n")
    code, document, _ = start_service("--regions", str(times), wait=False).ended()
    assert code == 4 and "steps.jsonl: cannot be made: File exists" in document["error"]["message"]
    assert times.read_text() == "of another service\n"
