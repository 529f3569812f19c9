"""Encoded packs through the real service: the text is the runner's own, and readable."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from one_prompt import prefill_one

from lean.accuracy.measure import HELDOUT
from lean.contracts import encoded_contract, load_contract
from lean.demo import CHECKPOINT_DIR
from lean.leanpack import Pack, open_pack
from lean.leanpack.build import BuildRequest, build_pack
from lean.leanserve.runner import Sampling
from lean.leanserve.tokenizer import PackTokenizer
from lean.leanserve.torch_runner import TorchRunner

CODED = ("fp8-e4m3", "int4-codebook", "nvfp4")
PROMPT, NEW = "If the file cannot be read", 48


@pytest.fixture(params=CODED)
def pack(request: pytest.FixtureRequest, tmp_path: Path) -> Pack:
    """The demo in one encoding."""
    contract = encoded_contract(load_contract("tiny-cpu"), request.param)
    built = BuildRequest(
        model=CHECKPOINT_DIR, contract=contract, packs=tmp_path, encoding=request.param, target="cpu"
    )
    return open_pack(build_pack(built).path)


def runners_text(pack: Pack) -> str:
    """Greedy text of the torch runner in this process."""
    tokenizer = PackTokenizer(pack.tokenizer_dir, vocab=4096)
    runner = TorchRunner(pack, slots=1, threads=1)
    first = prefill_one(runner, 0, list(tokenizer.encode(PROMPT)), Sampling())
    assert first is not None
    tokens = [first.token, *(step[0].token for step in runner.decode(1, NEW - 1))]
    return b"".join(tokenizer.token_bytes(token) for token in tokens).decode()


def test_an_encoded_pack_serves_readable_text(pack: Pack, start_service: Callable[..., Any]) -> None:
    served = start_service(pack=pack.path)
    contract = pack.manifest.contract
    assert served.ready["contract"] == contract.id == f"tiny-cpu-{contract.encoding}"
    assert served.ready["gate"] == {
        "encoding": contract.encoding,
        "status": "not needed",
        "record": None,
        "why": "the torch runner decodes to FP32",
    }
    body = {"model": contract.id, "prompt": PROMPT, "max_tokens": NEW, "temperature": 0, "ignore_eos": True}
    with served.client() as client:
        text = client.post("/v1/completions", json=body).json()["choices"][0]["text"]
    assert text == runners_text(pack)
    # Words of plain English, as manual pages have them: most stand in our own 1,300 words of held-out text.
    words = [word.strip(".,()").lower() for word in text.split()]
    known = {word.strip(".,()").lower() for word in HELDOUT.read_text().split()}
    assert len(words) > 20 and sum(word in known for word in words) > len(words) / 2
