"""Bytes of a model's weights in an encoding. Needs neither torch nor numpy."""

from __future__ import annotations

from kernels.encodings import encoded
from lean.contracts import Encoding, Model, kernels_required
from lean.errors import ContractError

BF16 = 2
FP32 = 4


def matrix_bytes(encoding: Encoding, rows: int, width: int) -> int:
    """A matrix [rows, width] with its scale and table. Errors: `ContractError` for a width it cannot have."""
    if encoding == "bf16":
        return BF16 * rows * width
    try:
        return sum(array.nbytes for array in encoded(encoding, rows, width))
    except ValueError as error:
        raise ContractError(f"encoding: {encoding}: {error}") from None


def decode_bytes(model: Model, encoding: Encoding) -> int:
    """What a decode step reads: layers, norms and head; one embedding row a stream is left out.

    Errors: `ContractError` for a geometry that the encoding cannot have.
    """
    return _norm_bytes(model) + sum(
        count * matrix_bytes(encoding, rows, width) for count, rows, width in _matrices(model)
    )


def model_bytes(model: Model, encoding: Encoding) -> int:
    """All weights, as a pack stores them: a tied head once in bf16, else beside the embedding.

    Errors: those of `decode_bytes`.
    """
    shared = model.tied_head and encoding == "bf16"
    return decode_bytes(model, encoding) + (0 if shared else _embedding_bytes(model))


def decoded_bytes(model: Model) -> int:
    """All weights with every matrix that can be encoded back in FP32."""
    matrices = sum(count * rows * width for count, rows, width in _matrices(model))
    return _norm_bytes(model) + _embedding_bytes(model) + FP32 * matrices


def _matrices(model: Model) -> list[tuple[int, int, int]]:
    """Count, rows and width of the matrices that a step multiplies by."""
    needs = kernels_required(model.geometry)
    return [
        (need.per_step, need.shape[0], need.shape[1])
        for need in needs
        if need.shape and need.op != "embedding"
    ]


def _norm_bytes(model: Model) -> int:
    multiplied = sum(count * rows * width for count, rows, width in _matrices(model))
    return BF16 * (model.decode_parameters - multiplied)


def _embedding_bytes(model: Model) -> int:
    return BF16 * model.geometry.vocab * model.geometry.hidden
