"""The resident plan: its arithmetic, its refusals, and that a laptop without torch can ask for it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from kernels.encodings import ENCODINGS, Encoding
from kernels.linear.reference import BLOCK
from lean.contracts import encoded_contract, load_contract, to_data
from lean.demo import CHECKPOINT_DIR
from lean.errors import PreflightError, UsageError
from lean.leanpack.build import BuildRequest, build_pack
from lean.leanserve.__main__ import main
from lean.leanserve.plan import (
    WIDENED_BLOCK_BYTES,
    Plan,
    available_memory,
    padded_length,
    require_memory,
    resident_plan,
)
from lean.weight_bytes import model_bytes

ROOT = Path(__file__).resolve().parents[2]
FOUR_B = load_contract("qwen3-4b-base-bf16-gb10")
TINY = load_contract("tiny-cpu")


def test_the_cache_of_the_4b_buckets_has_the_published_sizes() -> None:
    plan = resident_plan(FOUR_B, slots=1)
    found = {bucket.padded_length: bucket.kv_bytes for bucket in plan.buckets}
    assert found == {320: 47_185_920, 576: 84_934_656, 1088: 160_432_128}
    assert (plan.compute_dtype, plan.padded_length, plan.kv_bytes) == ("bfloat16", 1088, 160_432_128)


def test_the_4b_weights_are_counted_once_with_a_tied_head() -> None:
    assert model_bytes(FOUR_B.model, "bf16") == 8_044_936_192
    untied = replace(FOUR_B.model, tied_head=False)
    assert model_bytes(untied, "bf16") - model_bytes(FOUR_B.model, "bf16") == 2 * 151936 * 2560


def test_attention_scratch_follows_heads_and_head_dim_not_the_hidden_size() -> None:
    geometry = FOUR_B.model.geometry
    more_heads = replace(FOUR_B, model=replace(FOUR_B.model, geometry=replace(geometry, query_heads=64)))
    added = resident_plan(more_heads, slots=1).scratch_bytes - resident_plan(FOUR_B, slots=1).scratch_bytes
    assert added == 4 * 64 * (32 * 128 + 32 * 128 + 32 * 1088)  # query rows, attention output, scores


def test_every_number_of_slots_is_shown_and_adds_up() -> None:
    plan = resident_plan(FOUR_B, slots=4)
    assert [row.slots for row in plan.by_slots] == [1, 2, 4, 8]
    for row in plan.by_slots:
        assert row.kv_bytes == row.slots * 160_432_128
        assert row.total_bytes == plan.weight_bytes + row.kv_bytes + row.scratch_bytes
    assert plan.total_bytes == plan.by_slots[2].total_bytes


def test_the_cache_follows_the_compute_type_which_follows_the_target() -> None:
    assert resident_plan(TINY, slots=1).compute_dtype == "float32"
    half = resident_plan(TINY, slots=1, compute_dtype="bfloat16")
    assert resident_plan(TINY, slots=1).kv_bytes == 2 * half.kv_bytes == 2 * 1088 * 2 * 4 * 2 * 128 * 2


def test_a_pack_brings_its_own_weight_bytes() -> None:
    assert resident_plan(TINY, slots=1, weight_bytes=123).weight_bytes == 123


def test_a_slot_is_rounded_up_to_whole_prefill_tiles() -> None:
    assert [padded_length(length) for length in (1, 64, 65, 1088)] == [64, 64, 128, 1088]


def test_the_widened_block_is_the_one_the_reference_uses() -> None:
    assert WIDENED_BLOCK_BYTES == 4 * BLOCK


@pytest.mark.parametrize("slots", ["0", "3", "16"])
def test_other_numbers_of_slots_are_refused(slots: str) -> None:
    with pytest.raises(UsageError, match=rf"--slots: invalid choice: {slots} \(choose from 1, 2, 4, 8\)"):
        main(["plan", "--contract", "tiny-cpu", "--slots", slots])


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_bytes_of_a_model_are_those_of_its_pack(encoding: Encoding, tmp_path: Path) -> None:
    contract = encoded_contract(TINY, encoding)
    built = build_pack(
        BuildRequest(model=CHECKPOINT_DIR, contract=contract, packs=tmp_path, encoding=encoding, target="cpu")
    )
    assert built.weight_bytes == model_bytes(TINY.model, encoding)
    assert resident_plan(contract, slots=1, runner="cuda").weight_bytes == built.weight_bytes


def test_the_torch_runner_needs_room_for_what_it_decodes() -> None:
    coded = resident_plan(encoded_contract(TINY, "nvfp4"), slots=1, weight_bytes=123)
    plain = resident_plan(TINY, slots=1)
    embedding = 2 * 4096 * 256
    assert coded.weight_bytes - embedding == pytest.approx(2 * plain.weight_bytes, rel=1e-2)  # norms stay


def test_a_plan_can_be_asked_for_in_another_encoding(tmp_path: Path) -> None:
    words = ["plan", "--contract", "qwen3-4b-base-bf16-gb10", "--runner", "cuda", "--encoding"]
    plan = main([*words, "int4-codebook"])
    assert plan["contract"] == "qwen3-4b-base-bf16-gb10-int4-codebook"
    assert plan["weight_bytes"] == model_bytes(FOUR_B.model, "int4-codebook")
    with pytest.raises(UsageError, match="--encoding: a pack has its own"):
        main(["plan", "--pack", str(tmp_path), "--encoding", "nvfp4"])


def test_what_does_not_fit_is_refused_naming_need_have_and_what_fits() -> None:
    plan = resident_plan(FOUR_B, slots=8)
    require_memory(plan, plan.total_bytes)
    with pytest.raises(PreflightError) as refused:
        require_memory(plan, plan.total_bytes - 1)
    message = str(refused.value)
    assert f"{plan.total_bytes:,}" in message
    assert f"{plan.total_bytes - 1:,}" in message
    assert "use --slots 4" in message
    with pytest.raises(PreflightError, match="choose a smaller model"):
        require_memory(plan, 10**9)


def test_available_memory_is_read_from_meminfo(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       24103000 kB\nMemFree:  1 kB\nMemAvailable:   23585280 kB\n")
    assert available_memory(meminfo) == 23585280 * 1024
    meminfo.write_text("MemTotal:       24103000 kB\n")
    with pytest.raises(PreflightError, match="no MemAvailable"):
        available_memory(meminfo)
    with pytest.raises(PreflightError, match="cannot be read"):
        available_memory(tmp_path / "absent")


def test_this_machine_has_some_memory() -> None:
    assert available_memory() > 1 << 20


@pytest.mark.parametrize(
    ("changes", "runner", "words"),
    [
        ({"head_dim": 24}, "torch", "--split-k 8: a part of a head of 24 must be a power of two"),
        ({"query_heads": 24, "kv_heads": 12}, "cuda", "--split-k 8: 24 query heads; kernels are for a power"),
    ],
)
def test_a_projection_that_cannot_be_split_is_refused_before_anything_loads(
    changes: dict[str, int], runner: str, words: str
) -> None:
    contract = load_contract("tiny-cpu")
    geometry = replace(contract.model.geometry, **changes)
    contract = replace(contract, model=replace(contract.model, geometry=geometry))
    with pytest.raises(UsageError, match=words):
        resident_plan(contract, slots=1, runner=runner, split_k=8)
    encoded = encoded_contract(load_contract("tiny-cpu"), "nvfp4")
    with pytest.raises(UsageError, match="--split-k 8: only for bf16 weights, the pack's are nvfp4"):
        resident_plan(encoded, slots=1, split_k=8)


def test_a_split_projection_has_room_for_its_parts() -> None:
    contract = load_contract("qwen3-4b-base-bf16-h100")
    whole, split = (resident_plan(contract, slots=8, runner="cuda", split_k=k) for k in (None, 8))
    assert split.scratch_bytes - whole.scratch_bytes == 32 * 8 * 8 * 2560 * 4
    assert (split.kv_bytes, split.split_k, whole.split_k) == (whole.kv_bytes, 8, None)


def test_a_plan_is_plain_data() -> None:
    plan: Plan = resident_plan(TINY, slots=2)
    document = json.loads(json.dumps(to_data(plan)))
    assert document["total_bytes"] == plan.total_bytes
    assert [row["slots"] for row in document["by_slots"]] == [1, 2, 4, 8]


def test_planning_needs_neither_torch_nor_numpy() -> None:
    code = (
        "import sys, lean.leanserve.plan; print(sorted({'torch', 'numpy', 'safetensors'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
