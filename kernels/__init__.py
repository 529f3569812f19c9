"""Kernels by operation: `<op>/kernel.py` beside its `reference.py` and `cases.py`.

Start with `vector_add`, which is one kernel and its reference, then `rmsnorm_qkv`, the first projection of a
step. `qwen3` says which kernels a step launches, in which order and on which buffers; `spec` is what it says
it in, and `tiles` reads the tile sizes measured for a chip from `tuning`. `products` holds the products of
activations with weights that the operations' kernels share.

`build` compiles specifications through `aot`, `driver` launches the result without a compiler, `sass` reads
its machine code, and `case` is what a proof is made of: inputs, FP64 results, tolerances with their reasons.
Nothing here imports anything else of ours.
"""
