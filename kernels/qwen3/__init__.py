"""The whole Qwen3 appliance as data: the kernels of a geometry, the launches of a step and of a prompt.

Standard library only: who builds a pack and who serves it read the same pages. `sizes` is what is compiled
for, `specs` every kernel of it, `programs` the launches and the buffers they are bound to. Three programs run
on the device. `decode_program` takes every live slot one token further. `prompt_program` brings pieces of
prompts into the caches of their slots. `predict_program` chooses the first token behind each prompt that
ended.

One row (bucket 1) takes the vector path. Buckets 2, 4 and 8, and the first tokens however many there are,
share one set of kernels on 8 rows: a row's result depends on that row alone, so it is the same in any of
them, and rows beyond the bucket hold anything. Nor does a prompt's row depend on the program it travels in.
"""

from kernels.qwen3.programs import decode_program, predict_program, prompt_program, work_buffers
from kernels.qwen3.sizes import (
    BANNED,
    GROUP_FIELDS,
    HEAD_DIM,
    KEYS,
    PROMPT_GROUP,
    ROWS,
    SLOTS,
    SPLITS,
    Sizes,
)
from kernels.qwen3.specs import kernel_specs

__all__ = [
    "BANNED",
    "GROUP_FIELDS",
    "HEAD_DIM",
    "KEYS",
    "PROMPT_GROUP",
    "ROWS",
    "SLOTS",
    "SPLITS",
    "Sizes",
    "decode_program",
    "kernel_specs",
    "predict_program",
    "prompt_program",
    "work_buffers",
]
