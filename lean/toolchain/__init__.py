"""The toolchain proof: one kernel from Python source to machine code, and on to a GPU.

`python -m lean.toolchain verify` makes the proof; `python -m lean.toolchain record` turns a passed one into
the record that a repository keeps for each kernel source.
"""
