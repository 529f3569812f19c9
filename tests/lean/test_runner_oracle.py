"""The torch runner against transformers' Qwen3, which runs in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from one_prompt import prefill_one
from safetensors.torch import load_file
from tokenizers import Tokenizer

from lean.contracts import Bucket, Contract, Geometry, load_contract
from lean.demo import CHECKPOINT_DIR
from lean.leanpack import Pack, open_pack
from lean.leanpack.build import BuildRequest, build_pack
from lean.leanserve.runner import Choice, Sampling
from lean.leanserve.torch_runner import TorchRunner

ROOT = Path(__file__).resolve().parents[2]
ORACLE = Path(os.environ.get("LEAN_ORACLE_PYTHON", ROOT / ".venvs/oracle/bin/python"))
TEXTS = (
    "The function returns the number of bytes written to the file.",
    "If the option is given twice, the program prints",
    "NAME\n",
)
UNTIED = Geometry(layers=3, hidden=192, intermediate=320, query_heads=6, kv_heads=2, head_dim=64, vocab=4099)
SMALL_QWEN = Geometry(
    layers=28, hidden=1024, intermediate=3072, query_heads=16, kv_heads=8, head_dim=128, vocab=151936
)

pytestmark = pytest.mark.skipif(
    not ORACLE.exists(),
    reason=f"transformers is missing: no {ORACLE}; `make setup` or set LEAN_ORACLE_PYTHON",
)


def ask_oracle(tasks: list[dict[str, Any]], work: Path) -> None:
    """Run one oracle process, which must not see our packages."""
    (work / "job.json").write_text(json.dumps(tasks))
    argv = [str(ORACLE), str(ROOT / "tests/oracle/qwen3_oracle.py"), str(work / "job.json")]
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(argv, env=bare, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]


def random_contract(geometry: Geometry, *, tied: bool, eps: float, theta: float) -> Contract:
    tiny = load_contract("tiny-cpu")
    model = replace(
        tiny.model, id="test/random", geometry=geometry, rms_norm_eps=eps, rope_theta=theta, tied_head=tied
    )
    return replace(tiny, id="random", model=model, buckets=(Bucket(prompt=128, generate=64, batch=(1, 2)),))


def make_task(contract: Contract, folder: Path) -> dict[str, Any]:
    """The oracle's task that writes a random checkpoint of the contract's model."""
    model, g = contract.model, contract.model.geometry
    config = {
        "num_hidden_layers": g.layers,
        "hidden_size": g.hidden,
        "intermediate_size": g.intermediate,
        "num_attention_heads": g.query_heads,
        "num_key_value_heads": g.kv_heads,
        "head_dim": g.head_dim,
        "vocab_size": g.vocab,
        "rms_norm_eps": model.rms_norm_eps,
        "tie_word_embeddings": model.tied_head,
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_theta},
    }
    return {"make": str(folder), "config": config}


def stream_task(checkpoint: Path, prompt: list[int], new: int, out: Path) -> dict[str, Any]:
    return {"stream": str(checkpoint), "prompt": prompt, "new": new, "out": str(out)}


def packed(checkpoint: Path, contract: Contract, work: Path) -> Pack:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if not (checkpoint / name).exists():
            shutil.copy(CHECKPOINT_DIR / name, checkpoint / name)
    packs = work / "packs"
    request = BuildRequest(model=checkpoint, contract=contract, packs=packs, encoding="bf16", target="cpu")
    return open_pack(build_pack(request).path)


def random_tokens(vocab: int, count: int) -> list[int]:
    return torch.randint(vocab, (count,), generator=torch.Generator().manual_seed(5)).tolist()


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the oracle left: demo-0, demo-1, demo-2 and untied `.safetensors`, and the untied checkpoint."""
    folder = tmp_path_factory.mktemp("oracle")
    tokenizer = Tokenizer.from_file(str(CHECKPOINT_DIR / "tokenizer.json"))
    tasks = [
        stream_task(CHECKPOINT_DIR, tokenizer.encode(text).ids, 128, folder / f"demo-{index}.safetensors")
        for index, text in enumerate(TEXTS)
    ]
    contract = random_contract(UNTIED, tied=False, eps=1e-5, theta=10000.0)
    tasks.append(make_task(contract, folder / "untied"))
    prompt = random_tokens(UNTIED.vocab, 100)
    tasks.append(stream_task(folder / "untied", prompt, 20, folder / "untied.safetensors"))
    ask_oracle(tasks, folder)
    return folder


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    return packed(CHECKPOINT_DIR, load_contract("tiny-cpu"), tmp_path_factory.mktemp("demo"))


def every_logprob(choice: Choice | None) -> torch.Tensor:
    """Log probabilities [V] of a choice made with `top_logprobs` = V."""
    assert choice is not None
    ids, values = zip(*choice.top, strict=True)
    row = torch.empty(len(ids), dtype=torch.float64)
    row[list(ids)] = torch.tensor(values, dtype=torch.float64)
    return row


def relative_error(logprobs: torch.Tensor, logits: torch.Tensor) -> float:
    """Largest difference over the largest logit, after each row's normalising constant is put back."""
    expected = logits.double()
    ours = logprobs + expected.logsumexp(-1, keepdim=True)
    return float((ours - expected).abs().max() / expected.abs().max())


def stream_error(runner: TorchRunner, tokens: list[int], prompt: int, logits: torch.Tensor) -> float:
    """Prefill `prompt` tokens, decode the rest, which must be the runner's own choices; the logits' error."""
    choice = prefill_one(runner, 0, tokens[:prompt], Sampling(top_logprobs=runner.facts.vocab))
    rows = [every_logprob(choice)]
    for expected in tokens[prompt:]:
        assert choice is not None
        assert choice.token == expected
        choice = runner.decode(1, 1)[0][0]
        rows.append(every_logprob(choice))
    runner.release(0)
    return relative_error(torch.stack(rows), logits[prompt - 1 :])


@pytest.mark.parametrize("index", range(len(TEXTS)))
def test_128_greedy_tokens_of_the_demo_are_those_of_transformers(demo: Pack, work: Path, index: int) -> None:
    tokens = load_file(work / f"demo-{index}.safetensors")["tokens"].tolist()
    runner = TorchRunner(demo, slots=1, threads=1)
    first = prefill_one(runner, 0, tokens[:-128], Sampling())
    assert first is not None
    assert [first.token, *(step[0].token for step in runner.decode(1, 127))] == tokens[-128:]


def test_logits_of_the_demo_agree_within_1e_4_along_a_stream(demo: Pack, work: Path) -> None:
    answer = load_file(work / "demo-0.safetensors")
    tokens = answer["tokens"].tolist()
    runner = TorchRunner(demo, slots=1, threads=1)
    assert stream_error(runner, tokens, len(tokens) - 128, answer["logits"]) < 1e-4


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 127, 128, 129])
def test_logits_agree_after_prompts_around_a_tile(demo: Pack, work: Path, length: int) -> None:
    answer = load_file(work / "demo-0.safetensors")
    runner = TorchRunner(demo, slots=1, threads=1)
    tokens = answer["tokens"][:length].tolist()
    assert stream_error(runner, tokens, length, answer["logits"][:length]) < 1e-4


def test_bf16_activations_keep_the_demo_close_to_fp32(demo: Pack, work: Path) -> None:
    answer = load_file(work / "demo-0.safetensors")
    runner = TorchRunner(demo, slots=1, threads=1, dtype="bfloat16")
    tokens = answer["tokens"][:100].tolist()
    assert 1e-6 < stream_error(runner, tokens, 100, answer["logits"][:100]) < 3e-2


def test_logits_of_an_untied_model_of_other_geometry_agree_within_1e_4(work: Path) -> None:
    answer = load_file(work / "untied.safetensors")
    contract = random_contract(UNTIED, tied=False, eps=1e-5, theta=10000.0)
    runner = TorchRunner(packed(work / "untied", contract, work), slots=1, threads=1)
    assert stream_error(runner, answer["tokens"].tolist(), 100, answer["logits"]) < 1e-4


@pytest.mark.slow
def test_logits_of_the_0_6b_geometry_agree_within_1e_4(tmp_path: Path) -> None:
    contract = random_contract(SMALL_QWEN, tied=True, eps=1e-6, theta=1e6)
    checkpoint, out = tmp_path / "checkpoint", tmp_path / "answer.safetensors"
    prompt = random_tokens(SMALL_QWEN.vocab, 70)
    ask_oracle([make_task(contract, checkpoint), stream_task(checkpoint, prompt, 6, out)], tmp_path)
    runner = TorchRunner(packed(checkpoint, contract, tmp_path), slots=1, threads=1)
    answer = load_file(out)
    assert stream_error(runner, answer["tokens"].tolist(), 70, answer["logits"]) < 1e-4
