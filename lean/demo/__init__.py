"""A tiny Qwen3-architecture model, really trained, small enough to live in the repository.

The chain, one module a link: `sources` and `corpus` (this machine's text in three splits), `tokenizer`
(byte-level BPE) and `tokens`, `model` (Qwen3 in plain PyTorch), `hf_files` (Hugging Face file layout),
`train`, `ngram` (the baseline), `copying` (the memorisation check), `evaluate` and `report` (`training.json`,
`TRAINING.md`). `soak_tasks` makes what the soak asks the main model, from a text that it never saw.

`checkpoint/` holds the main model, `draft/` one about four times smaller with the same tokenizer.
"""

from pathlib import Path

DEMO_DIR = Path(__file__).resolve().parent
CHECKPOINT_DIR = DEMO_DIR / "checkpoint"
DRAFT_DIR = DEMO_DIR / "draft"
