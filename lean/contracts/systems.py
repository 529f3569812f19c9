"""The other systems that one can be measured against; `lean.baseline.systems` says how each is run."""

from __future__ import annotations

SYSTEMS = ("vllm", "sglang", "llama.cpp", "transformers")
BEST_OF = 3  # runs that a best is taken of, at least
