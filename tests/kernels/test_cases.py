"""What the cases expect, in FP64, against the operations' references and torch's own functions."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch, which the references are written in, is not installed")

from torch import Tensor  # noqa: E402

from kernels.attention import cases as attention  # noqa: E402
from kernels.attention.reference import attend, norm_rotate, rotary_rows  # noqa: E402
from kernels.case import Case, Data, Draw, Expected, cases_of, constant, machine_code_of  # noqa: E402
from kernels.output_residual.reference import output_residual  # noqa: E402
from kernels.read_bandwidth.spec import read_spec  # noqa: E402
from kernels.rmsnorm_gate_up_silu.reference import rmsnorm_gate_up_silu  # noqa: E402
from kernels.rmsnorm_head_argmax.reference import rmsnorm_head_argmax  # noqa: E402
from kernels.rmsnorm_qkv.reference import rmsnorm_qkv  # noqa: E402
from kernels.sampling.cases import INPUTS, STEPS, Inputs, Search, keys_of  # noqa: E402
from kernels.sampling.reference import kept_weights, sample  # noqa: E402
from lean.leanserve.runner import Sampling  # noqa: E402
from lean.leanserve.sampler import distribution  # noqa: E402
from lean.toolchain.shapes import specs_of  # noqa: E402

TARGET = "sm_121"
SPECS = {spec.name: spec for spec in specs_of("tiny", TARGET)}
F32 = 5e-6  # what the references lose in FP32
EPS = 1e-6


def given(kernel: str, case: int = 0) -> tuple[Case, Data, dict[str, Expected]]:
    found = cases_of(SPECS[kernel])[case]
    data = found.data(Draw(5, torch.device("cpu")))
    return found, data, found.expected(data)


def off(found: Tensor, wanted: Tensor) -> float:
    assert found.shape == wanted.shape
    return float((found.double() - wanted).norm() / wanted.norm())


def test_the_projection_of_one_row_is_the_reference_s() -> None:
    _, data, expected = given("qkv.one")
    found = rmsnorm_qkv(data["hidden"].float(), data["norm"], data["weight"], EPS)
    assert off(found, expected["out"].value) < F32
    _, data, expected = given("gate_up.one")
    found = rmsnorm_gate_up_silu(data["hidden"].float(), data["norm"], data["weight"], EPS)
    assert off(found, expected["out"].value) < F32


@pytest.mark.parametrize("kernel", ["qkv.rows", "qkv.prompt64", "gate_up.rows", "gate_up.prompt64"])
def test_a_producer_s_sums_and_products_are_the_reference_s_norm(kernel: str) -> None:
    """Dividing the norm's weight out again gives the row that the producer had, but for one rounding."""
    _, data, expected = given(kernel)
    z, weight = data["z"].flatten(1), data["weight"].flatten(1)
    hidden = z.shape[1]
    size = (data["squares"].sum(0) / hidden + EPS).rsqrt().unsqueeze(1)
    row = z.float() * size  # already normed, so a norm of ones leaves only the epsilon's part of it
    reference = rmsnorm_qkv if kernel.startswith("qkv") else rmsnorm_gate_up_silu
    exact = row @ weight.float().T
    if reference is rmsnorm_gate_up_silu:
        gate, up = exact.chunk(2, dim=-1)
        exact = torch.nn.functional.silu(gate) * up
    assert off(exact, expected["out"].value) < F32
    draw, case = Draw(5, torch.device("cpu")), cases_of(SPECS[kernel])[0]
    stream = draw.stream(len(z), hidden)
    norm = draw.gain(hidden)
    stream[len(stream) // 2] = 0.0
    again = case.data(Draw(5, torch.device("cpu")))["z"].flatten(1)
    assert torch.equal((stream * norm.float()).bfloat16(), again)
    whole = reference(stream, norm, weight, EPS)
    assert off(whole, expected["out"].value) < 2**-7  # z is rounded to bf16, the reference's row is not


@pytest.mark.parametrize("kernel", ["output.one", "down.rows", "down.prompt64"])
def test_the_residual_stream_is_the_reference_s(kernel: str) -> None:
    _, data, expected = given(kernel)
    stream = output_residual(data["x"].flatten(1), data["weight"].flatten(1), data["residual"])
    assert off(stream, expected["residual"].value) < F32
    if "squares" in expected:
        squares = expected["squares"].value.sum(0)
        assert off(stream.square().sum(1), squares) < F32
        assert off(stream * data["norm"].float(), expected["z"].value) < F32


@pytest.mark.parametrize("kernel", ["attention.one", "attention.rows8"])
def test_decode_attention_is_the_reference_s_for_every_live_slot(kernel: str) -> None:
    spec = SPECS[kernel]
    heads, groups = int(constant(spec, "HQ")), int(constant(spec, "HKV"))
    for index in range(len(cases_of(spec))):
        _, data, expected = given(kernel, index)
        for slot in range(spec.grid[2]):
            place = int(data["positions"][slot])
            if not 0 <= place < data["keys"].shape[2]:
                assert not expected["out"].value[slot].any()
                continue
            weight = torch.cat((data["query_norm"].expand(heads, -1), data["key_norm"].expand(groups, -1)))
            cos, sin = rotary_rows(data["rotary"], torch.tensor([place]))
            row = data["qkv"][slot : slot + 1]
            turned = norm_rotate(row[:, : heads + groups], weight, cos, sin, EPS)
            new, value = turned[0, heads:].bfloat16(), row[0, heads + groups :].bfloat16()
            keys = torch.cat((data["keys"][slot, :, :place], new.unsqueeze(1)), dim=1)
            values = torch.cat((data["values"][slot, :, :place], value.unsqueeze(1)), dim=1)
            found = attend(turned[:, :heads], keys, values)
            assert (
                off(found.view(heads, 128), expected["out"].value[slot]) < 1e-3
            )  # a key may round otherwise
            assert off(turned[0, heads:], expected["keys"].value[slot, :, place]) < F32


LAYOUTS = [
    (name, case)
    for name in ("prompt64", "prompt256")
    for case in range(len(cases_of(SPECS[f"attention.{name}"])))
]


@pytest.mark.parametrize("program, case", LAYOUTS)
def test_prompt_attention_is_the_reference_s(program: str, case: int) -> None:
    _, data, expected = given(f"attention.{program}", case)
    for group, (slot, first, count) in enumerate(data["groups"].tolist()):
        rows = slice(group * 64, group * 64 + count)
        query = data["query"][rows].float() * math.sqrt(128) / math.log2(math.e)
        keys, values = (data[name][slot, :, : first + count] for name in ("keys", "values"))
        if count:
            found = attend(query, keys, values)
            assert off(found.view(count, -1, 128), expected["out"].value[rows]) < F32


@pytest.mark.parametrize("kernel", ["append.prompt256", "attention.prompt256"])
def test_whatever_a_prompt_s_kernels_must_not_read_is_nan(kernel: str) -> None:
    for case in cases_of(SPECS[kernel]):
        data = case.data(Draw(5, torch.device("cpu")))
        rows = data["qkv" if kernel.startswith("append") else "query"].isnan().flatten(1)
        counts = [inside < count for _, _, count in data["groups"].tolist() for inside in range(64)]
        assert rows.all(1).tolist() == [not counts_here for counts_here in counts]
        if kernel.startswith("attention"):
            reached = {slot: first + count for slot, first, count in data["groups"].tolist() if count}
            for cache in (data["keys"], data["values"]):
                found = (~cache.isnan().any(3)).all(1).sum(1).tolist()
                assert found == [reached.get(slot, 0) for slot in range(8)]


def test_layouts_meet_empty_groups_several_slots_and_a_group_at_the_slot_s_end() -> None:
    for rows in (256, 1024):
        layouts = dict(attention._layouts(rows, 1088))
        assert all(len(groups) == rows // 64 for groups in layouts.values())
        assert not any(count for _, _, count in layouts["nothing"])
        assert len({slot for slot, _, count in layouts["several"] if count}) == min(rows // 64, 8)
        counts = [count for _, _, count in layouts["gaps"]]
        assert counts[0] and counts[-1] and 0 in counts
        assert any(first + count == 1088 and count == 64 for _, first, count in layouts["gaps"])


def test_an_appended_prompt_is_the_reference_s() -> None:
    _, data, expected = given("append.prompt64", 2)
    ((slot, first, count),) = data["groups"].tolist()
    assert (first, count) == (63, 64)
    weight = torch.cat((data["query_norm"].expand(4, -1), data["key_norm"].expand(2, -1)))
    cos, sin = rotary_rows(data["rotary"], torch.arange(first, first + count))
    turned = norm_rotate(data["qkv"][:count, :6].float(), weight, cos, sin, EPS)
    scale = constant(SPECS["append.prompt64"], "SCALE")
    assert off(turned[:, :4] * scale, expected["query"].value[:count]) < F32
    appended = expected["keys"].value[slot, :, first : first + count].transpose(0, 1)
    assert off(turned[:, 4:], appended) < F32


def test_the_greedy_choice_is_the_reference_s_lowest_of_equal_ones() -> None:
    from kernels.rmsnorm_head_argmax.cases import parts_of

    random = torch.Generator().manual_seed(3)
    x, head = torch.randn(4, 64, generator=random), torch.randn(4160, 64, generator=random)
    logits, greedy = rmsnorm_head_argmax(x, torch.ones(64), head, EPS)
    best, index = parts_of(logits, 1024)
    assert torch.equal(index.gather(1, best.argmax(1, keepdim=True)).squeeze(1), greedy.int())
    best, index = parts_of(torch.zeros(1, 2050), 1024)
    assert index.tolist() == [[0, 1024, 2048]]


@pytest.mark.parametrize("top_k, top_p", [(0, 1.0), (50, 1.0), (0, 0.9), (20, 0.8), (1, 1.0), (7, 0.5)])
def test_sampling_keeps_what_the_torch_runner_keeps(top_k: int, top_p: float) -> None:
    logits = torch.randn(4160, generator=torch.Generator().manual_seed(top_k)) * 4
    weights = kept_weights(logits, 0.7, top_k, top_p)
    settings = Sampling(temperature=0.7, top_k=top_k, top_p=top_p)
    ids, probabilities = distribution(logits, settings)
    assert set(weights.nonzero().flatten().tolist()) == set(ids.tolist())
    assert off(weights[ids] / weights.sum(), probabilities) < 1e-12


@pytest.mark.parametrize("name", INPUTS)
def test_the_search_of_sampling_ends_at_what_the_reference_keeps(name: str) -> None:
    inputs = Inputs(SPECS["sampled.rows"], name, slots=list(range(8)), rows=8)
    data = inputs.data(Draw(5, torch.device("cpu")), STEPS)
    for index in inputs.sampled(data):
        row, above = inputs.row(data, index), data["above"][index]
        search = Search(*data["search"][index].tolist(), goal=float(data["goal"][index]), above=above)
        start, edge, _ = search.evaluated(row)
        kept = (keys_of(row.logits) >= max(edge, start)) & row.logits.isfinite()
        wanted = kept_weights(row.logits, row.temperature, row.top_k, row.top_p)
        weights = ((row.logits.double() - row.logits.max()) / row.temperature).exp()
        nothing = row.top_p == 0.0  # no weight is asked for, so `draw` finds none and takes the greedy token
        assert torch.equal(torch.where(kept, weights, 0.0), torch.zeros_like(wanted) if nothing else wanted)


def test_keys_order_as_the_logits_do_and_the_zeros_are_one() -> None:
    logits = torch.tensor([-math.inf, -3.0, -1e-30, -0.0, 0.0, 1e-30, 2.0, math.inf])
    keys = keys_of(logits).tolist()
    assert keys == sorted(keys) and len(set(keys)) == 7 and keys[3] == keys[4] == 0


def test_a_draw_takes_the_vocabulary_s_order_and_ties_stay_together() -> None:
    logits = torch.tensor([0.0, 1.0, 1.0, -1.0])
    assert [sample(logits, 1.0, 0, 1.0, draw) for draw in (0.0, 0.2, 0.99)] == [0, 1, 3]
    assert [sample(logits, 1.0, 1, 1.0, draw) for draw in (0.0, 0.49, 0.51)] == [1, 1, 2]
    assert sample(logits, 0.0, 0, 1.0, 0.9) == 1


def test_the_sum_of_a_read_wraps_around_and_counts_every_word() -> None:
    for index, name in enumerate(("random", "largest")):
        case, data, expected = given("read_bandwidth", index)
        words = data["words"].numpy()
        assert case.name == name and words.shape == SPECS["read_bandwidth"].arrays[0].shape
        with np.errstate(over="ignore"):
            wanted = words.sum(axis=1, dtype=np.int32)  # numpy's own arithmetic modulo 2^32
        assert expected["sums"].value.flatten().tolist() == wanted.tolist()
        assert case.bytes_moved == words.nbytes + wanted.nbytes
    assert int(words.min()) >= 2**31 - 4
    changed = data | {"words": data["words"].clone()}
    changed["words"][-1, -1] ^= 1
    assert (case.expected(changed)["sums"].value != expected["sums"].value).flatten().tolist() == [
        *[False] * (len(words) - 1),
        True,
    ]


@pytest.mark.parametrize("name", ["4b", "1.7b", "0.6b", "tiny"])
def test_one_read_covers_a_layer_s_matrices_but_for_less_than_a_block(name: str) -> None:
    words = next(spec for spec in specs_of(name, TARGET) if spec.name == "read_bandwidth").arrays[0]
    layer = sum(
        array.nbytes
        for spec in specs_of(name, TARGET)
        for array in spec.arrays
        if array.name == "weight" and spec.name in ("qkv.one", "output.one", "gate_up.one", "down.one")
    )
    assert 0 <= layer - words.nbytes < 1 << 15
    with pytest.raises(ValueError, match="span: 32767 bytes; a block reads 32768"):
        read_spec(32767)


def test_every_kernel_has_cases_with_costs_reasons_and_instructions() -> None:
    for spec in SPECS.values():
        found = cases_of(spec)
        assert len({case.name for case in found}) == len(found) > 0, spec.name
        for case in found:
            assert case.bytes_moved > 0 and case.flops >= 0
            assert set(case.rows) <= {array.name for array in spec.arrays}
        data = found[0].data(Draw(1, torch.device("cpu")))
        expected = found[0].expected(data)
        assert all(len(wanted.tolerance.reason) > 20 for wanted in expected.values())
        assert set(data) | set(expected) <= {array.name for array in spec.arrays}
        assert machine_code_of(spec, TARGET).access_bytes in (4, 8, 16)


def test_decode_positions_meet_both_edges_of_a_tile_and_of_the_slot() -> None:
    seen = {place for live in (1, 2, 4, 8) for _, some in attention._positions(1088, live) for place in some}
    assert seen == {-1, 0, 63, 64, 65, 1000, 1087, 1088}
