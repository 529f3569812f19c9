"""The splits as flat files of little-endian uint16 tokens: document, <|endoftext|>, document, and so on.

python -m lean.demo.tokens --corpus build/corpus --tokenizer lean/demo/checkpoint --out build/tokens
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from lean.demo.corpus import SPLITS, read_split
from lean.demo.tokenizer import END_OF_TEXT

TokenArray = NDArray[np.uint16]


def tokenise(tokenizer: Tokenizer, texts: list[str]) -> TokenArray:
    """All texts in one array [N], each followed by <|endoftext|>."""
    end = [tokenizer.token_to_id(END_OF_TEXT)]
    pieces = [np.array(encoding.ids + end, dtype="<u2") for encoding in tokenizer.encode_batch(texts)]
    return np.concatenate(pieces)


def read_tokens(folder: Path, split: str) -> TokenArray:
    return np.fromfile(folder / f"{split}.bin", dtype="<u2")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, required=True, help="folder that lean.demo.corpus wrote")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder with tokenizer.json")
    parser.add_argument("--out", type=Path, required=True, help="folder for <split>.bin and tokens.json")
    arguments = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(arguments.tokenizer / "tokenizer.json"))
    arguments.out.mkdir(parents=True, exist_ok=True)
    record = {}
    for split in SPLITS:
        texts = [document.text for document in read_split(arguments.corpus, split)]
        tokens = tokenise(tokenizer, texts)
        tokens.tofile(arguments.out / f"{split}.bin")
        digest = hashlib.sha256(tokens.tobytes()).hexdigest()
        record[split] = {
            "tokens": len(tokens),
            "bytes_of_text": sum(len(t.encode()) for t in texts),
            "sha256": digest,
        }
    (arguments.out / "tokens.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
