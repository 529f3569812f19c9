"""The strict loader, the official contracts, hosts and labels."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from lean.contracts import (
    BenchProfile,
    Contract,
    Hosts,
    LabelFacts,
    check_geometry,
    compute_label,
    contract_sha256,
    from_data,
    geometry_mismatches,
    kernels_required,
    load,
    load_contract,
    load_hosts,
    load_profile,
    to_data,
)
from lean.contracts.catalog import ROOT, names
from lean.errors import ContractError

OFFICIAL = "qwen3-4b-base-bf16-gb10"
PROFILE = """schema: bench/v1
id: x
prompt_tokens: 64
decode_tokens: 256
batch: 1
warmup_requests: 1
requests: 3
seed: 7
"""


def profile_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "x.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("decode_tokens: 256", "decode_tokens: 'a'", "decode_tokens: expected int, got 'a'"),
        ("decode_tokens: 256", "decode_tokens: 1.5", "decode_tokens: expected int, got 1.5"),
        ("decode_tokens: 256", "decode_tokens: true", "decode_tokens: expected int, got True"),
        ("decode_tokens: 256", "decode_tokens: null", "decode_tokens: expected int, got None"),
        ("decode_tokens: 256", "decode_tokens: 1", "decode_tokens: expected at least 2, got 1"),
        ("decode_tokens: 256\n", "", "decode_tokens: missing"),
        ("batch: 1", "batch: 3", "batch: expected 1, 2, 4 or 8, got 3"),
        ("seed: 7", "seed: 7\nspeed: 9", "speed: unknown key"),
        ("seed: 7", "seed: 7\nseed: 8", "line 9: duplicate key 'seed'"),
        ("id: x", "id: !!python/object:os.system x", "line 2: tag"),
        ("id: x", "id: &a x", "line 2: aliases and anchors"),
        ("id: x", "id: *a", "line 2: aliases and anchors"),
        ("id: x", "1: x", "line 2: expected a name as key"),
        ("bench/v1", "bench/v2", "schema: expected 'bench/v1', got 'bench/v2'"),
        ("schema: bench/v1\n", "", "schema: expected 'bench/v1', got None"),
        ("id: x", "id: " + "[" * 40 + "]" * 40, "line 2: nested deeper than 16 levels"),
        ("id: x", "id: {", "line"),
        (PROFILE, "- 1", "expected a mapping"),
        (PROFILE, "", "expected a mapping"),
        (PROFILE, "a: 1\n---\na: 2\n", "line 2: but found another document"),
    ],
)
def test_a_wrong_profile_is_refused_with_the_file_and_the_place(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    path = profile_file(tmp_path, PROFILE.replace(old, new))
    with pytest.raises(ContractError) as raised:
        load(BenchProfile, path)
    assert str(raised.value).startswith(f"{path}: ")
    assert message in str(raised.value)
    assert raised.value.exit_code == 2


def test_a_correct_profile_loads_and_is_frozen(tmp_path: Path) -> None:
    profile = load(BenchProfile, profile_file(tmp_path, PROFILE))
    assert (profile.prompt_tokens, profile.decode_tokens, profile.batch) == (64, 256, 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        profile.batch = 2  # type: ignore[misc]


def test_an_alias_bomb_ends_at_its_first_anchor(tmp_path: Path) -> None:
    bomb = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"
    with pytest.raises(ContractError, match="line 1: aliases and anchors"):
        load(BenchProfile, profile_file(tmp_path, bomb))


def test_a_huge_file_is_refused_by_its_size(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="a configuration file has at most"):
        load(BenchProfile, profile_file(tmp_path, PROFILE + "#" * (1 << 20)))


def test_bytes_that_are_not_utf8_and_a_missing_file_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"schema: \xff\xfe")
    with pytest.raises(ContractError, match="not UTF-8"):
        load(BenchProfile, path)
    with pytest.raises(ContractError, match="cannot be read"):
        load(BenchProfile, tmp_path / "absent.yaml")


@pytest.mark.parametrize("name", names(ROOT / "profiles" / "contracts"))
def test_every_committed_contract_survives_a_round_trip_through_json(name: str) -> None:
    contract = load_contract(name)
    again = from_data(Contract, json.loads(json.dumps(to_data(contract))), "json")
    assert again == contract
    assert contract_sha256(again) == contract_sha256(contract)


def test_every_committed_profile_is_a_bucket_of_the_official_contract() -> None:
    contract = load_contract(OFFICIAL)
    for name in names(ROOT / "profiles" / "bench"):
        profile = load_profile(name)
        bucket = contract.bucket(profile.prompt_tokens, profile.decode_tokens)
        assert bucket is not None and profile.batch in bucket.batch, name


def test_the_official_contract_has_the_published_geometry() -> None:
    contract = load_contract(OFFICIAL)
    g = contract.model.geometry
    assert (g.layers, g.hidden, g.intermediate, g.query_heads, g.kv_heads, g.head_dim, g.vocab) == (
        36, 2560, 9728, 32, 8, 128, 151936,
    )  # fmt: skip
    assert (contract.official, contract.target, contract.encoding) == (True, "sm_121", "bf16")
    weights = 2 * (g.layers * g.layer_parameters + g.vocab * g.hidden)
    assert weights == pytest.approx(8.04e9, rel=1e-3)  # a tied head is stored once
    assert contract.max_length == 1088


def test_the_kernels_a_contract_needs_follow_from_its_geometry() -> None:
    needs = {need.op: need for need in kernels_required(load_contract(OFFICIAL).model.geometry)}
    assert needs["rmsnorm_qkv"].shape == (6144, 2560)
    assert needs["output_residual"].shape == (2560, 4096)
    assert needs["rmsnorm_gate_up_silu"].shape == (19456, 2560)
    assert needs["down_residual"].shape == (2560, 9728)
    assert sum(need.per_step for need in needs.values()) == 1 + 5 * 36 + 1


def test_an_unknown_contract_lists_the_known_ones() -> None:
    with pytest.raises(ContractError, match=r"no contract named 'nope'; known: .*tiny-cpu"):
        load_contract("nope")


CONFIG = {
    "model_type": "qwen3",
    "num_hidden_layers": 36,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000,
    "tie_word_embeddings": True,
}


def test_a_checkpoint_that_agrees_passes_and_newer_rope_spelling_is_understood() -> None:
    model = load_contract(OFFICIAL).model
    check_geometry(model, CONFIG, "config.json")
    newer = {k: v for k, v in CONFIG.items() if k != "rope_theta"} | {"rope_parameters": {"rope_theta": 1e6}}
    assert geometry_mismatches(model, newer) == ()


@pytest.mark.parametrize("field", sorted(CONFIG))
def test_a_checkpoint_that_disagrees_in_one_field_is_refused_with_both_values(field: str) -> None:
    model = load_contract(OFFICIAL).model
    with pytest.raises(ContractError, match=r"contract says .*, checkpoint says 7"):
        check_geometry(model, CONFIG | {field: 7}, "config.json")
    with pytest.raises(ContractError, match="checkpoint says nothing"):
        check_geometry(model, {k: v for k, v in CONFIG.items() if k != field}, "config.json")


def hosts_in(tmp_path: Path, shared: str, local: str | None = None) -> Hosts:
    (tmp_path / "hosts.yaml").write_text("schema: hosts/v1\n" + shared)
    if local is not None:
        (tmp_path / "hosts.local.yaml").write_text(local)
    return load_hosts(tmp_path)


SHARED = "default: loopback\nhosts:\n  loopback: {contract: tiny-cpu}\n"


def test_the_committed_hosts_file_has_the_loopback_as_first_and_default() -> None:
    hosts = load(Hosts, ROOT / "hosts.yaml")
    assert hosts.default == "loopback"
    assert next(iter(hosts.hosts)) == "loopback"


def test_local_hosts_are_merged_over_the_shared_ones_key_by_key(tmp_path: Path) -> None:
    local = "default: spark\nhosts:\n  spark: {hostname: spark.local, contract: c}\n  loopback: {gpu: none}\n"
    hosts = hosts_in(tmp_path, SHARED, local)
    assert hosts.get() == ("spark", hosts.hosts["spark"])
    assert (hosts.hosts["loopback"].contract, hosts.hosts["loopback"].gpu) == ("tiny-cpu", "none")


@pytest.mark.parametrize(
    ("local", "message"),
    [
        ("default: nope\n", "default: no host named 'nope'"),
        ("hosts:\n  a: {contract: c}\n", "hosts.a.hostname: missing"),
        ("hosts:\n  -a: {hostname: h, contract: c}\n", "a host's name has letters"),
        ("hosts:\n  a: {hostname: -oProxyCommand=x, contract: c}\n", "would be read as an option"),
        ("hosts:\n  a: {hostname: 'h x', contract: c}\n", "would be read as an option or hold blanks"),
        ("hosts:\n  a: {hostname: h, contract: c, port: 0}\n", "port: expected 1 to 65535"),
        ("hosts:\n  a: {hostname: h, contract: c, internet: perhaps}\n", "internet: expected bool"),
        ("hosts:\n  a: {hostname: h, contract: c, gpu: maybe}\n", "gpu: expected one of auto, none"),
        ("hosts:\n  a: {hostname: h}\n", "contract: missing"),
    ],
)
def test_a_wrong_local_hosts_file_is_refused_and_named(tmp_path: Path, local: str, message: str) -> None:
    with pytest.raises(ContractError, match=message) as raised:
        hosts_in(tmp_path, SHARED, local)
    assert "hosts.local.yaml" in str(raised.value)


def test_an_unknown_host_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"no host named 'x' in .*; known: loopback"):
        hosts_in(tmp_path, SHARED).get("x")


GOOD = LabelFacts(overridden=(), weights="checkpoint", source_matches=True, lock_verified=True, fair=True)


def test_a_run_is_fixed_contract_only_when_nothing_speaks_against_it() -> None:
    verdict = compute_label(load_contract(OFFICIAL), load_profile("decode_64_256"), GOOD)
    assert (verdict.label, verdict.reasons) == ("fixed-contract", ())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"overridden": ("requests",)}, "overridden: requests"),
        ({"weights": "random"}, "pack weights are random"),
        ({"weights": "demo"}, "pack weights are demo"),
        ({"source_matches": False}, "pack sources differ"),
        ({"lock_verified": False}, "pack LOCK not verified"),
        ({"fair": False}, "fairness gate not passed"),
        ({"options": ("split-K 4", "region timing")}, "not the default: split-K 4, region timing"),
    ],
)
def test_each_shortcoming_alone_makes_a_run_exploratory(change: dict[str, object], reason: str) -> None:
    facts = dataclasses.replace(GOOD, **change)  # type: ignore[arg-type]
    verdict = compute_label(load_contract(OFFICIAL), load_profile("decode_64_256"), facts)
    assert verdict.label == "exploratory"
    assert any(reason in r for r in verdict.reasons) and len(verdict.reasons) == 1


def test_the_tiny_contract_and_a_profile_outside_the_buckets_are_exploratory() -> None:
    tiny = compute_label(load_contract("tiny-cpu"), load_profile("decode_64_256"), GOOD)
    assert tiny.reasons == ("contract tiny-cpu is not official",)
    odd = dataclasses.replace(load_profile("decode_64_256"), decode_tokens=100)
    assert compute_label(load_contract(OFFICIAL), odd, GOOD).label == "exploratory"
