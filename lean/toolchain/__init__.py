"""From kernel source to machine code and on to a GPU: `python -m lean.toolchain <verb>`, a room a verb.

`verify` is the smoke kernel's whole way; `proof` compiles the appliance's kernels and proves each one;
`gate`, `portability`, `speed` (the verb `kernels`) and `tune` ask compiler and chip further questions. `chip`
is where they run what was compiled. What lies beside the rooms is shared; `records` keeps what a verb found.
"""
