"""Random packs: the numbers a seed gives, that it always gives them, and who can read them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lean.contracts import load_contract
from lean.demo import CHECKPOINT_DIR
from lean.errors import UsageError
from lean.leanpack import Pack, open_pack, source_matches
from lean.leanpack.__main__ import main
from lean.leanpack.build import BuildRequest, build_pack
from lean.leanpack.sealing import BuildReport
from lean.leanserve.tokenizer import PackTokenizer


def build(packs: Path, seed: int = 7, **changes: Any) -> BuildReport:
    contract = load_contract("tiny-cpu")
    values = {"seed": seed, "contract": contract, "packs": packs, "encoding": "bf16", "target": "cpu"}
    return build_pack(BuildRequest(**(values | changes)))


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    return open_pack(build(tmp_path_factory.mktemp("packs")).path)


def numbers(pack: Pack, name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    return (pack.tensor(name).astype(np.uint32) << 16).view(np.float32)


def test_the_same_seed_gives_the_same_lock_and_another_seed_another(pack: Pack, tmp_path: Path) -> None:
    assert build(tmp_path).lock == pack.lock
    assert build(tmp_path).built is False
    assert build(tmp_path, seed=8).lock != pack.lock


def test_the_program_takes_a_seed(pack: Pack, tmp_path: Path) -> None:
    words = ["build", "--random", "7", "--contract", "tiny-cpu", "--packs", str(tmp_path), "--target", "cpu"]
    assert main(words)["lock"] == pack.lock
    with pytest.raises(UsageError, match="not allowed with argument"):
        main([*words, "--model", str(CHECKPOINT_DIR)])


def test_the_source_says_that_it_is_random_and_from_which_seed(pack: Pack) -> None:
    manifest = pack.manifest
    assert (manifest.weights, manifest.source.kind, manifest.source.seed) == ("random", "random", 7)
    assert manifest.source.id is None and not source_matches(manifest)
    assert "model.safetensors" not in {file.path for file in manifest.source.files}


@pytest.mark.parametrize(
    ("name", "mean", "deviation"),
    [
        ("embedding", 0.0, 0.02),
        ("layers.0.attention.qkv", 0.0, 256**-0.5),
        ("layers.3.attention.output", 0.0, 512**-0.5),
        ("layers.1.mlp.down", 0.0, 768**-0.5),
    ],
)
def test_weights_are_normal_with_the_deviation_training_starts_from(
    pack: Pack, name: str, mean: float, deviation: float
) -> None:
    found = (numbers(pack, name) - mean) / deviation
    count = found.size
    assert abs(found.mean()) < 5 / count**0.5
    assert abs(found.std() - 1) < 5 / (2 * count) ** 0.5
    for edge, inside in ((1.0, 0.682689), (2.0, 0.954500), (3.0, 0.997300)):  # of the normal distribution
        share = (np.abs(found) < edge).mean()
        # BF16 keeps 8 bits, so what lies within 1/256 of an edge may fall on either side of it.
        assert abs(share - inside) < 5 * (inside * (1 - inside) / count) ** 0.5 + 0.002


def test_norms_are_about_one_and_tensors_differ(pack: Pack) -> None:
    norm = numbers(pack, "final_norm")
    assert abs(norm.mean() - 1) < 0.01 and 0.01 < norm.std() < 0.03
    assert not np.array_equal(pack.tensor("layers.0.mlp.down"), pack.tensor("layers.1.mlp.down"))


def test_another_geometry_gets_the_demos_tokenizer_and_a_config_of_its_own(tmp_path: Path) -> None:
    contract = load_contract("tiny-cpu")
    geometry = dataclasses.replace(contract.model.geometry, vocab=5000, layers=1)
    model = dataclasses.replace(contract.model, geometry=geometry, tied_head=False)
    pack = open_pack(build(tmp_path, contract=dataclasses.replace(contract, model=model)).path)
    assert pack.tensor("head").shape == (5000, 256)
    tokenizer = PackTokenizer(pack.tokenizer_dir, vocab=5000)
    assert tokenizer.encode("return 0;") == PackTokenizer(CHECKPOINT_DIR, vocab=4096).encode("return 0;")
    assert '"vocab_size": 5000' in (pack.tokenizer_dir / "config.json").read_text()


def test_the_torch_runner_reads_a_random_pack(pack: Pack) -> None:
    from one_prompt import prefill_one

    from lean.leanserve.runner import Sampling
    from lean.leanserve.torch_runner import TorchRunner

    runner = TorchRunner(pack, slots=1, threads=1)
    choice = prefill_one(runner, 0, [1, 2, 3], Sampling())
    assert choice is not None and 0 <= choice.token < 4096
