"""Measuring a resident service through its public HTTP surface, and keeping the evidence.

`record` and `results` read run directories with the standard library and `lean.contracts` alone; the laptop
uses them. `client` needs httpx, `prompt` tokenizers, `plot` matplotlib: those stay on the host that measures.
"""
