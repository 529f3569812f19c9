"""Kernels by operation: `<op>/kernel.py` beside its `reference.py` and `cases.py`.

`aot` compiles them, `driver` launches them, `sass` reads their machine code. Nothing here imports anything
else of ours.
"""
