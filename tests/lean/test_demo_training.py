"""The demo checkpoints are what their record says, and the parts of the recipe do what they claim."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer

from lean.contracts import geometry_mismatches, load_contract
from lean.demo import CHECKPOINT_DIR, DEMO_DIR, DRAFT_DIR
from lean.demo.copying import RUN, CopyCheck, longest_copied_run, longest_repeated_run
from lean.demo.corpus import RepeatFilter, collect, split_of, without_repeats
from lean.demo.hf_files import load_checkpoint
from lean.demo.model import generate
from lean.demo.ngram import KneserNeyTrigram, discounts
from lean.demo.sources import Document, clean_manual_page, library_docstrings, manual_pages
from lean.demo.train import mean_loss

RECORD = json.loads((DEMO_DIR / "training.json").read_text())
FOLDERS = {"main": CHECKPOINT_DIR, "draft": DRAFT_DIR}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(CHECKPOINT_DIR / "tokenizer.json"))


@pytest.mark.parametrize("name", FOLDERS)
def test_the_committed_weights_are_those_the_record_speaks_of(name: str) -> None:
    data = (FOLDERS[name] / "model.safetensors").read_bytes()
    assert hashlib.sha256(data).hexdigest() == RECORD["models"][name]["sha256"]
    assert len(data) == RECORD["models"][name]["bytes"] <= 10_000_000


def test_the_draft_is_about_four_times_smaller_and_shares_the_tokenizer() -> None:
    ratio = RECORD["models"]["main"]["run"]["parameters"] / RECORD["models"]["draft"]["run"]["parameters"]
    assert 3.3 < ratio < 5
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        assert (DRAFT_DIR / name).read_bytes() == (CHECKPOINT_DIR / name).read_bytes()


def test_the_checkpoint_has_the_layout_of_the_hub_and_the_contracts_geometry() -> None:
    config = json.loads((CHECKPOINT_DIR / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"] and config["model_type"] == "qwen3"
    assert geometry_mismatches(load_contract("tiny-cpu").model, config) == ()
    with safe_open(CHECKPOINT_DIR / "model.safetensors", "pt") as weights:
        names = set(weights.keys())
        assert all(weights.get_tensor(name).dtype == torch.bfloat16 for name in names)
    assert "model.layers.0.self_attn.q_norm.weight" in names and "lm_head.weight" not in names


def test_the_record_meets_the_bar_and_says_how() -> None:
    main = RECORD["models"]["main"]
    assert RECORD["longest_repeated_training_run"] < 32
    assert main["heldout_loss"] < RECORD["trigram_heldout_loss"]
    for model in RECORD["models"].values():
        copies = model["copying"]
        assert copies["run"] == RUN == 32
        kinds = [found for found in copies.values() if isinstance(found, dict)]
        assert len(kinds) == 5 and all(found["copied_windows"] == 0 for found in kinds)
        curve = [point["validation"] for point in model["run"]["curve"]]
        assert curve[-1] < curve[0] and min(curve) == pytest.approx(
            model["run"]["best_validation_loss"], abs=1e-4
        )
        assert isinstance(model["run"]["recipe"]["seed"], int) and model["run"]["device"]


@pytest.mark.parametrize("folder", FOLDERS.values(), ids=FOLDERS)
def test_held_out_docstrings_are_predicted_better_than_the_trigram_model_manages(
    tokenizer: Tokenizer, folder: Path
) -> None:
    stdlib = Path(json.__file__).parents[1]
    documents = [d for d in library_docstrings(stdlib) if split_of(d.name) == "heldout"]
    text = "\n\n".join(document.text[:600] for document in documents)
    tokens = np.array(tokenizer.encode(text).ids, dtype=np.uint16)
    assert len(tokens) > 1000
    loss = mean_loss(load_checkpoint(folder), tokens, torch.device("cpu"))
    assert loss < RECORD["trigram_heldout_loss"] < 0.6 * math.log(4096)


def test_greedy_text_is_the_same_twice_and_is_made_of_words(tokenizer: Tokenizer) -> None:
    model = load_checkpoint(CHECKPOINT_DIR)
    prompt = torch.tensor([tokenizer.encode("The function returns").ids])
    first = generate(model, prompt, 24, 0.0, torch.Generator().manual_seed(0))
    again = generate(model, prompt, 24, 0.0, torch.Generator().manual_seed(1))
    assert torch.equal(first, again)
    whole = torch.cat((prompt, first), dim=1)
    assert torch.equal(
        model(whole)[0, prompt.shape[1] - 1 : -1].argmax(-1), first[0]
    )  # no cache, same choice
    assert sum(word.isalpha() for word in tokenizer.decode(first[0].tolist()).split()) >= 6


@pytest.mark.parametrize(
    "text",
    [
        "plain words",
        "naïve façade — 日本語 🙂",
        "tabs\tand\r\nlines\n\n\n",
        "  x=1234567;",
        "\u0000\u200b\ufeff",
    ],
)
def test_any_text_survives_the_tokenizer_up_to_its_nfc_form(tokenizer: Tokenizer, text: str) -> None:
    import unicodedata

    ids = tokenizer.encode(text).ids
    assert max(ids) < 4096
    assert tokenizer.decode(ids, skip_special_tokens=False) == unicodedata.normalize("NFC", text)


def test_digits_are_split_one_by_one_as_qwen2s_pre_tokeniser_does(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode("1234567").ids) == 7


def test_a_trigram_model_over_two_words_gives_the_probabilities_worked_out_by_hand() -> None:
    train = np.array([0, 1, 0, 1, 0, 1, 1])
    model = KneserNeyTrigram(train, vocab=2)
    for u in (0, 1):
        for v in (0, 1):
            p = [float(model.probabilities(np.array([u]), np.array([v]), np.array([w]))[0]) for w in (0, 1)]
            assert sum(p) == pytest.approx(1.0) and min(p) > 0
    # Unigram continuation counts: 0 follows {1}, 1 follows {0, 1}; D = n1/(n1+2n2) = 1/3 for all; uniform
    # is 1/2.
    reserved = 2 / 3 / 3
    unigram = [(1 - 1 / 3) / 3 + reserved / 2, (2 - 1 / 3) / 3 + reserved / 2]
    # Nothing ever followed (0, 0), and nothing ever followed 0 but 1: the bigram order speaks for the
    # context 0.
    # Bigram continuation counts: 01 follows {1}, 10 follows {0}, 11 follows {0}; n1 = 3, so D = 1 for all.
    assert float(model.probabilities(np.array([0]), np.array([0]), np.array([1]))[0]) == pytest.approx(
        unigram[1]
    )


def test_the_three_discounts_follow_chen_and_goodmans_formula() -> None:
    # n1..n4 = 8, 4, 2, 1: Y = 8 / (8 + 2 * 4) = 1/2; D1 = 1 - 2Y * 4/8, D2 = 2 - 3Y * 2/4, D3 = 3 - 4Y * 1/2.
    counts = np.repeat([1, 2, 3, 4], [8, 4, 2, 1])
    assert discounts(counts).tolist() == [0.0, 0.5, 1.25, 2.0]


def test_the_trigram_model_prefers_text_like_its_training_text() -> None:
    rng = np.random.default_rng(0)
    pattern = np.tile(np.arange(50), 40)
    model = KneserNeyTrigram(pattern, vocab=64)
    assert model.loss(pattern[:200]) < 0.5 < 3 < model.loss(rng.integers(0, 64, 200))


def test_the_copy_check_finds_exactly_the_windows_that_were_copied() -> None:
    rng = np.random.default_rng(1)
    train = rng.integers(0, 4096, 5000).astype(np.uint16)
    text = rng.integers(0, 4096, 300).astype(np.uint16)
    assert CopyCheck(train).copied_windows(text) == []
    text[100:134] = train[2000:2034]
    assert CopyCheck(train).copied_windows(text) == [100, 101, 102]
    assert longest_copied_run(train, [text]) == 34


def test_the_longest_run_that_stands_twice_is_found() -> None:
    tokens = np.random.default_rng(3).integers(0, 4096, 2000).astype(np.uint16)
    tokens[1500:1527] = tokens[100:127]
    assert longest_repeated_run(tokens) == 27
    assert longest_repeated_run(np.array([1, 2, 3])) == 0


def test_short_lines_that_add_up_to_a_repeat_are_struck() -> None:
    opening = "#include <stdio.h>\n\n#include <stdlib.h>\n\nint main(int argc, char *argv[])"
    repeats = RepeatFilter()
    first, second = (
        without_repeats(Document(name, f"{opening}\n\n{name} " + prose), repeats)
        for name, prose in (
            ("one", " ".join(f"alpha{chr(97 + i)} beta{chr(107 + i)}" for i in range(25))),
            ("two", " ".join(f"gamma{chr(97 + i)} delta{chr(107 + i)}" for i in range(25))),
        )
    )
    assert first is not None and opening in first.text
    assert second is not None and "#include <stdio.h>" in second.text and "argv" not in second.text


def test_a_paragraph_that_repeats_itself_is_struck() -> None:
    repeats = RepeatFilter()
    assert not repeats.accept("See logind.conf(5) for details. " * 3)
    assert repeats.accept("See logind.conf(5) for details.")
    assert not repeats.accept("SEE LOGIND.CONF(5) FOR DETAILS, see logind.conf(5) for details.\n" * 2)


def test_the_split_is_by_name_and_repeated_paragraphs_are_struck() -> None:
    boilerplate = "Permission is granted to make and distribute verbatim copies of this manual page today."
    rng = np.random.default_rng(2)
    prose = ["".join(rng.choice(list("abcdefghij "), 400)) for _ in range(200)]
    documents = [Document(f"page{i}", f"{text}\n\n{boilerplate}") for i, text in enumerate(prose)]
    splits, again = collect(documents), collect(documents)
    assert splits == again
    texts = [document.text for split in splits.values() for document in split]
    assert sum(boilerplate in text for text in texts) == 1
    assert sum(map(len, splits.values())) == 200 and all(splits.values())


def test_the_record_of_the_text_and_the_record_of_the_training_speak_of_the_same_splits() -> None:
    corpus = json.loads((DEMO_DIR / "corpus.json").read_text())
    for split, entry in corpus["splits"].items():
        assert RECORD["corpus"][split]["text_sha256"] == entry["sha256"]
    assert corpus["packages"] and all(len(line.split(" ")) == 2 for line in corpus["packages"])


def test_a_page_loses_its_header_footer_and_licence_and_keeps_its_prose() -> None:
    body = "NAME\n       ls - list\n\nCOPYRIGHT\n       Free.\n\nNOTES\n       ‘Odd’ files.\n"
    assert (
        clean_manual_page(f"LS(1)  LS(1)\n\n{body}\n2026  LS(1)\n")
        == "NAME\n\nls - list\n\nNOTES\n\n'Odd' files."
    )


def test_pages_and_modules_are_read_the_same_way_twice_in_sorted_order(tmp_path: Path) -> None:
    (tmp_path / "b.py").write_text(
        '"""Second module."""\ndef f(x, y=1):\n    """Do f."""\ndef _g():\n    """Hidden."""\n'
    )
    (tmp_path / "a.py").write_text('"""First module."""\n')
    found = list(library_docstrings(tmp_path))
    assert found == [
        Document("python/a", "a\n\nFirst module."),
        Document("python/b", "b\n\nSecond module.\n\nb.f(x, y=1)\n\nDo f."),
    ]
    if shutil.which("groff") is None:
        pytest.skip("groff (package groff-base) is not installed")
    (tmp_path / "man1").mkdir()
    for name in ("zed", "abc"):
        roff = f".TH {name} 1\n.SH NAME\n{name} \\- a page\n"
        (tmp_path / "man1" / f"{name}.1.gz").write_bytes(gzip.compress(roff.encode()))
    pages = list(manual_pages(tmp_path, None))
    assert pages == [Document(f"man1/{name}.1", f"NAME\n\n{name} - a page") for name in ("abc", "zed")]
    assert pages == list(manual_pages(tmp_path, None))
