"""Packs with noise in their weights: sound as packs, damaged as models, and open about it."""

from __future__ import annotations

import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from helpers import REPO
from safetensors import safe_open

from lean.bearer import read_token
from lean.contracts import BenchProfile, Contract, Geometry, encoded_contract, load_contract
from lean.contracts.label import LabelFacts, compute_label
from lean.costs.service import running_service
from lean.errors import ContractError, PackError, PreflightError, UsageError
from lean.files import staging
from lean.leanpack import open_pack, read_manifest, sealing, source_matches
from lean.leanpack.build import BuildRequest, build_pack, draft_manifest
from lean.leanpack.compile import CompiledTarget
from lean.leanpack.convert import bf16_values
from lean.leanpack.kernel_record import ABI, ArrayRecord, ConstantRecord, KernelRecord, TargetRecord
from lean.leanpack.random_weights import RandomOrigin
from lean.leanpack.verify import verify_pack
from lean.soak.perturb import perturbed_pack

SHARE = 0.25
STAYS = ("embedding", "head", "final_norm", "norm")


def request(packs: Path, **changes: Any) -> BuildRequest:
    values: dict[str, Any] = {"model": REPO / "lean/demo/checkpoint", "contract": load_contract("tiny-cpu")}
    return BuildRequest(**(values | {"packs": packs, "encoding": "bf16", "target": "cpu"} | changes))


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(build_pack(request(tmp_path_factory.mktemp("packs"))).path)


@pytest.fixture(scope="module")
def perturbed(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return perturbed_pack(pack, tmp_path_factory.mktemp("perturbed"), share=SHARE, seed=7)


def contents(pack: Path) -> dict[str, bytes]:
    return {
        path.relative_to(pack).as_posix(): path.read_bytes() for path in pack.rglob("*") if path.is_file()
    }


def test_it_is_a_pack_like_any_other(pack: Path, perturbed: Path) -> None:
    report = verify_pack(perturbed)
    assert perturbed.name == f"tiny-cpu-{report.lock[:8]}" and perturbed.name != pack.name
    before, after = contents(pack), contents(perturbed)
    assert before.keys() == after.keys()
    assert {name for name in before if before[name] != after[name]} == {
        *("LOCK", "manifest.json"),
        *(f"weights/layer-00{layer}.safetensors" for layer in range(4)),
    }
    for path in (pack, perturbed):
        with safe_open(path / "weights/layer-000.safetensors", framework="pt") as file:
            assert file.get_tensor("layers.0.mlp.down").shape == (256, 768), "for safetensors' reader too"


def test_it_says_that_its_weights_are_perturbed_and_supports_no_claim(pack: Path, perturbed: Path) -> None:
    manifest, _ = read_manifest(perturbed)
    _, lock = read_manifest(pack)
    source = manifest.source
    assert (manifest.weights, source.kind, source.id, source.seed) == ("random", "random", None, 7)
    assert source.revision == f"perturbed-normal-sfc64-v1 share=0.25 of={lock}"
    assert {file.path for file in source.files} == {path.name for path in (pack / "tokenizer").iterdir()}
    assert not any(file.hub_verified for file in source.files) and not source_matches(manifest)
    profile = BenchProfile(
        id="p", prompt_tokens=8, decode_tokens=8, batch=1, warmup_requests=1, requests=3, seed=1
    )
    facts = LabelFacts(
        overridden=(), weights=manifest.weights, source_matches=True, lock_verified=True, fair=True
    )
    verdict = compute_label(replace(manifest.contract, official=True), profile, facts)
    assert verdict.label == "exploratory" and "pack weights are random" in verdict.reasons


def test_each_projection_has_noise_of_its_own_scale_and_nothing_else_has_any(
    pack: Path, perturbed: Path
) -> None:
    before, after = open_pack(pack), open_pack(perturbed)
    g = before.manifest.contract.model.geometry
    query, key_value = g.query_heads * g.head_dim, g.kv_heads * g.head_dim
    parts = {"qkv": [query, query + key_value], "gate_up": [g.intermediate]}
    seen = []
    for record in before.manifest.tensors:
        one, other = bf16_values(before.tensor(record.name)), bf16_values(after.tensor(record.name))
        if record.role in STAYS or record.role.endswith("norm"):
            assert (one == other).all(), record.name
            continue
        splits = parts.get(record.role.split(".")[1], [])
        for old, new in zip(np.split(one, splits), np.split(other, splits), strict=True):
            noise = (new - old).astype(np.float64)
            assert noise.std() / old.std() == pytest.approx(SHARE, rel=0.02), record.name
            assert abs(noise.mean()) < 0.02 * old.std(), record.name
            assert abs(np.corrcoef(noise.ravel(), old.ravel())[0, 1]) < 0.02, record.name
            seen.append(noise.ravel()[:1000])
    assert len(seen) == 4 * 7
    correlations = np.corrcoef(np.stack(seen)) - np.eye(len(seen))
    assert abs(correlations).max() < 0.2, "every matrix has draws of its own"


def test_the_same_seed_gives_the_same_lock_and_another_seed_or_share_another(
    pack: Path, perturbed: Path, tmp_path: Path
) -> None:
    again = perturbed_pack(pack, tmp_path, share=SHARE, seed=7)
    assert contents(again) == contents(perturbed)
    others = [
        perturbed_pack(pack, tmp_path, share=share, seed=seed) for share, seed in ((SHARE, 8), (0.5, 7))
    ]
    assert len({again, *others}) == 3


def test_a_pack_that_is_there_is_taken_and_a_damaged_one_is_not(pack: Path, tmp_path: Path) -> None:
    first = perturbed_pack(pack, tmp_path, share=SHARE, seed=7)
    stamp = first.stat().st_mtime_ns, first.stat().st_ino
    assert perturbed_pack(pack, tmp_path, share=SHARE, seed=7) == first
    assert (first.stat().st_mtime_ns, first.stat().st_ino) == stamp
    file = first / "weights/layer-001.safetensors"
    file.chmod(0o600)
    with file.open("r+b") as weights:
        weights.seek(9000)
        weights.write(b"\1")
    with pytest.raises(PackError, match="damaged; remove it"):
        perturbed_pack(pack, tmp_path, share=SHARE, seed=7)
    shutil.rmtree(first)
    assert perturbed_pack(pack, tmp_path, share=SHARE, seed=7) == first


def test_what_is_interrupted_leaves_no_pack_and_the_next_one_starts_anew(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = sealing.write_weight_file

    def stop(plan: Any, out: Any, read: Any) -> Any:
        if plan.name.endswith("002.safetensors"):
            raise KeyboardInterrupt
        return original(plan, out, read)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sealing, "write_weight_file", stop)
        perturbed_pack(pack, tmp_path, share=SHARE, seed=7)
    assert [path.name for path in tmp_path.iterdir()] == [".tiny-cpu.lock"]
    left = tmp_path / ".tiny-cpu.staging"
    left.mkdir()  # of one that was killed
    assert perturbed_pack(pack, tmp_path, share=SHARE, seed=7).is_dir() and not left.exists()


def test_a_full_disk_is_told_before_anything_is_written(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda _: usage._replace(free=1 << 20))
    with pytest.raises(PreflightError, match="make room"):
        perturbed_pack(pack, tmp_path, share=SHARE, seed=7)
    assert [path.name for path in tmp_path.iterdir()] == [".tiny-cpu.lock"]


@pytest.mark.parametrize("change", [{"share": 0.0}, {"share": 1.5}, {"share": float("nan")}, {"seed": -1}])
def test_a_share_or_a_seed_out_of_range_is_told(pack: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(change))):
        perturbed_pack(pack, tmp_path, **({"share": SHARE, "seed": 7} | change))


def test_it_does_not_lie_beside_the_sound_pack(pack: Path) -> None:
    with pytest.raises(UsageError, match="a folder of its own"):
        perturbed_pack(pack, pack.parent, share=SHARE, seed=7)


def test_another_encoding_than_bf16_is_refused_by_name(tmp_path: Path) -> None:
    contract = encoded_contract(load_contract("tiny-cpu"), "int4-codebook")
    encoded = build_pack(request(tmp_path / "packs", contract=contract, encoding="int4-codebook"))
    with pytest.raises(ContractError, match="int4-codebook"):
        perturbed_pack(Path(encoded.path), tmp_path / "out", share=SHARE, seed=7)


def test_an_altered_pack_is_not_perturbed(pack: Path, tmp_path: Path) -> None:
    altered = Path(shutil.copytree(pack, tmp_path / pack.name))
    file = altered / "weights/output.safetensors"
    file.chmod(0o600)
    file.write_bytes(file.read_bytes()[:-1] + b"\7")
    with pytest.raises(PackError, match="altered"):
        perturbed_pack(altered, tmp_path / "out", share=SHARE, seed=7)


def test_kernels_and_targets_stay_byte_for_byte(tmp_path: Path) -> None:
    kernel = KernelRecord(
        name="one.two",
        operation="qkv",
        function="a:b",
        symbol="one_two",
        **{kind: f"targets/sm_90/one.two.{kind}" for kind in ("tilebc", "cubin", "sass")},
        abi=ABI,
        grid=(1, 1, 1),
        arrays=(ArrayRecord(name="x", dtype="bf16", shape=(8,)),),
        constants=(ConstantRecord(name="N", value=8),),
        occupancy=None,
        warps=None,
        registers=32,
        shared_bytes=0,
        stack_bytes=0,
        spill_stores=0,
        spill_loads=0,
    )
    target = CompiledTarget(
        record=TargetRecord(name="sm_90", runner="cuda", encoding="bf16", kernels=(kernel,)),
        contents={f"targets/sm_90/one.two.{kind}": kind.encode() for kind in ("tilebc", "cubin", "sass")},
    )
    asked = request(tmp_path / "packs", model=None, seed=3, target="cpu,sm_90")
    origin = RandomOrigin(asked.contract, 3)
    with sealing.writing_into(asked.packs, asked.contract):
        draft = draft_manifest(asked, origin, None, (target,))
        sound = Path(sealing.seal_pack(asked.packs, draft, origin, (target,)).path)
    damaged = perturbed_pack(sound, tmp_path / "out", share=SHARE, seed=3)
    verify_pack(damaged)
    before, after = contents(sound), contents(damaged)
    targets = [name for name in before if name.startswith("targets/")]
    assert len(targets) == 5 and all(before[name] == after[name] for name in targets)
    assert read_manifest(sound)[0].targets == read_manifest(damaged)[0].targets


def wide(contract: Contract) -> Contract:
    """Two layers whose largest matrix is 24 MiB."""
    geometry = Geometry(
        layers=2, hidden=1024, intermediate=6144, query_heads=8, kv_heads=2, head_dim=64, vocab=512
    )
    return replace(contract, model=replace(contract.model, geometry=geometry))


def test_a_matrix_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    asked = request(tmp_path / "packs", model=None, seed=3, contract=wide(load_contract("tiny-cpu")))
    sound = Path(build_pack(asked).path)
    tracemalloc.start()
    try:
        perturbed_pack(sound, tmp_path / "out", share=SHARE, seed=7)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 12 << 20, f"{peak} bytes"


def test_it_serves_and_answers_something_else(pack: Path, perturbed: Path) -> None:
    def answer(path: Path) -> tuple[str, str]:
        with running_service(path, 1) as service:
            headers = {"Authorization": f"Bearer {read_token(service.token_file).decode()}"}
            with httpx.Client(base_url=service.ready["url"], headers=headers, trust_env=False) as client:
                model = client.get("/v1/models").json()["data"][0]["id"]
                asked = {"model": model, "prompt": "The water in the lake", "temperature": 0}
                said = client.post("/v1/completions", json=asked | {"max_tokens": 40}, timeout=60).json()
            return said["choices"][0]["text"], service.ready["lock"]

    sound, damaged = answer(pack), answer(perturbed)
    assert sound[0] != damaged[0]
    assert damaged[1] == read_manifest(perturbed)[1] != sound[1]
