"""What the kernels are compiled for: a model's sizes, and the limits that every pack shares."""

from __future__ import annotations

from dataclasses import dataclass

from kernels.encodings import ENCODINGS, Encoding

ROWS = 8  # rows of the tensor-core decode path
SLOTS = 8
HEAD_DIM = 128
KEYS = 64  # positions a decode attention block reads at once; the cache is padded to whole tiles
BANNED = 8  # tokens that a request can keep from coming early
VOCAB_PART = 1024
SAMPLE_STEPS = 16  # launches that find both thresholds, see `sampling`
SPLITS = (1, 2, 4, 8)  # parts that a head's share of the output projection may be cut into
PROMPT_ROWS = (64, 256, 1024)
PROMPT_GROUP = 64  # rows of a prompt program that belong to one piece
GROUP_FIELDS = ("slot", "first", "count")  # of each group: see `kernels.attention.kernel`


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What the kernels are compiled for. `length`: positions a slot holds, whole tiles of `KEYS`."""

    layers: int
    hidden: int
    intermediate: int
    query_heads: int
    kv_heads: int
    vocab: int
    eps: float
    length: int
    encoding: Encoding = "bf16"

    def __post_init__(self) -> None:
        if self.encoding not in ENCODINGS:
            raise ValueError(f"encoding: {self.encoding!r}; expected one of {', '.join(ENCODINGS)}")
        group = self.query_heads // self.kv_heads
        if group not in (1, 2, 4, 8):
            raise ValueError(f"query_heads: {group} to a key-value head; expected 1, 2, 4 or 8")
        for name in ("hidden", "intermediate"):
            if getattr(self, name) % 256:
                raise ValueError(f"{name}: {getattr(self, name)} is no multiple of 256")
        if self.length % KEYS:
            raise ValueError(f"length: {self.length} is no multiple of {KEYS}")

    @property
    def heads(self) -> int:
        """Query, key and value heads of one row."""
        return self.query_heads + 2 * self.kv_heads

    @property
    def group(self) -> int:
        """Query heads that share a key head."""
        return self.query_heads // self.kv_heads

    @property
    def can_split(self) -> bool:
        """Whether there are kernels for the output projection in parts: bf16, and a power of two of heads."""
        return self.encoding == "bf16" and self.query_heads.bit_count() == 1

    @property
    def width(self) -> int:
        """Width of the attention's output."""
        return self.query_heads * HEAD_DIM

    @property
    def prompt_rows(self) -> tuple[int, ...]:
        """Rows of the prompt programs; the longest need not exceed what all slots hold."""
        return tuple(rows for rows in PROMPT_ROWS if rows <= SLOTS * self.length)

    @property
    def vocab_parts(self) -> int:
        """Parts the vocabulary is searched in."""
        return -(-self.vocab // VOCAB_PART)

    @property
    def parts(self) -> int:
        """Most blocks of columns that leave a sum of squares behind."""
        return self.hidden // 16

    def splits(self, bucket: int) -> int:
        """Blocks that share a slot's keys: as many as fit the chip at once, more of them for long slots."""
        return min(power_of_two(self.length // KEYS), 4 if bucket > 2 else 8 if self.length <= 2048 else 32)


def power_of_two(count: int) -> int:
    return 1 << max(count - 1, 0).bit_length()
