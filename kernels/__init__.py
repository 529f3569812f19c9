"""Kernels by operation: `<op>/kernel.py` beside its `reference.py` and `cases.py`; `aot` compiles, `driver` launches.

Nothing here imports anything else of ours.
"""
