"""Weights from a seed: the traffic and the kernels of a model whose checkpoint is not at hand.

They are normal in 65,536 equally likely steps: 16 random bits choose the middle of a slice of the normal
distribution (the largest is 4.3 standard deviations out), rounded to BF16. A table look-up makes them as
fast as they can be hashed; each tensor has a generator of its own, seeded by the pack's seed and its name.

Standard deviations are those that training starts from: 0.02 for the embedding, 1/sqrt(inputs) for other
matrices; norms are 1 give or take 0.02.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from lean.contracts import Contract
from lean.demo import CHECKPOINT_DIR
from lean.files.safe_path import read_small
from lean.leanpack.convert import to_bf16
from lean.leanpack.layout import EMBEDDING, PlannedTensor
from lean.leanpack.manifest import Source, Weights
from lean.leanpack.snapshot import SourceFile

RECIPE = "normal-sfc64-v1"  # another one whenever the same seed gives other numbers
EMBEDDING_STD = 0.02
NORM_STD = 0.02
MAX_SEED = 2**63 - 1
_STEPS = 1 << 16
_DRAWS = 1 << 15  # of 64 bits, 4 numbers each: larger blocks leave the cache and are slower
_TOKENIZER = ("merges.txt", "tokenizer.json", "tokenizer_config.json", "vocab.json")
_MAX_TOKENIZER_BYTES = 4 << 20


class RandomOrigin:
    """A model of the contract's geometry, drawn from `seed`, with the demo's tokenizer."""

    def __init__(self, contract: Contract, seed: int) -> None:
        self._seed = seed
        self._normal = normal_steps()
        self._tables: dict[tuple[float, float], NDArray[np.uint16]] = {}
        files = {name: read_small(CHECKPOINT_DIR, name, _MAX_TOKENIZER_BYTES) for name in _TOKENIZER}
        self._tokenizer = dict(sorted((files | {"config.json": _config(contract)}).items()))

    @property
    def source(self) -> Source:
        """Nothing but the seed, the recipe, and the tokenizer's files."""
        files = tuple(
            SourceFile(path=name, size=len(data), sha256=hashlib.sha256(data).hexdigest(), hub_verified=False)
            for name, data in self._tokenizer.items()
        )
        return Source(kind="random", id=None, revision=RECIPE, seed=self._seed, files=files)

    @property
    def weights(self) -> Weights:
        """Never a claim."""
        return "random"

    def contents(self, tensor: PlannedTensor) -> Iterator[bytes]:
        """The tensor's BF16 numbers, 256 KiB at a time."""
        table = self._table(*_moments(tensor))
        for drawn in draw_steps(self._seed, tensor.name, math.prod(tensor.shape)):
            # `wrap` spares the check of indices that cannot be out of range; the result is the same.
            yield table.take(drawn, mode="wrap").tobytes()

    def tokenizer(self) -> Mapping[str, bytes]:
        """The demo's files, and a config.json of the contract's geometry."""
        return self._tokenizer

    def check_unchanged(self) -> None:
        """A seed stays what it is."""

    def _table(self, mean: float, deviation: float) -> NDArray[np.uint16]:
        key = mean, deviation
        if key not in self._tables:
            values = (mean + deviation * self._normal).astype("<f4")
            self._tables[key] = np.frombuffer(to_bf16(values.tobytes(), "F32", "random weights"), "<u2")
        return self._tables[key]


def draw_steps(seed: int, name: str, count: int) -> Iterator[NDArray[np.uint16]]:
    """`count` steps of the normal distribution, a generator for each name, 131,072 at a time."""
    words = np.frombuffer(hashlib.sha256(name.encode()).digest(), "<u4")
    bits = np.random.SFC64(np.random.SeedSequence([seed, *map(int, words)]))
    while count:
        drawn = bits.random_raw(_DRAWS).astype("<u8", copy=False).view("<u2")[:count]
        yield drawn
        count -= drawn.size


def normal_steps() -> NDArray[np.float64]:
    """What the steps stand for: the middles of equally likely slices of the normal distribution."""
    quantile = statistics.NormalDist().inv_cdf
    return np.array([quantile((step + 0.5) / _STEPS) for step in range(_STEPS)])


def _moments(tensor: PlannedTensor) -> tuple[float, float]:
    """Mean and standard deviation."""
    if len(tensor.shape) == 1:
        return 1.0, NORM_STD
    return 0.0, EMBEDDING_STD if tensor.role == EMBEDDING else 1 / math.sqrt(tensor.shape[1])


def _config(contract: Contract) -> bytes:
    """The contract's model as Hugging Face's config.json has it."""
    model, g = contract.model, contract.model.geometry
    values = {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "head_dim": g.head_dim,
        "hidden_act": "silu",
        "hidden_size": g.hidden,
        "intermediate_size": g.intermediate,
        "max_position_embeddings": contract.max_length,
        "model_type": model.family,
        "num_attention_heads": g.query_heads,
        "num_hidden_layers": g.layers,
        "num_key_value_heads": g.kv_heads,
        "rms_norm_eps": model.rms_norm_eps,
        "rope_scaling": None,
        "rope_theta": model.rope_theta,
        "tie_word_embeddings": model.tied_head,
        "torch_dtype": "bfloat16",
        "vocab_size": g.vocab,
    }
    return (json.dumps(values, indent=2, sort_keys=True) + "\n").encode()
