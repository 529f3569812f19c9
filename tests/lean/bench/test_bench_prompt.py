"""Prompts of an exact number of tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from lean.bench.prompt import exact_prompt, open_tokenizer, profile_prompts
from lean.contracts import load_profile
from lean.errors import PackError, PreflightError


@pytest.mark.parametrize("tokens", [1, 2, 17, 64, 1024])
def test_a_prompt_has_exactly_the_tokens_asked_for_as_ids_and_as_text(
    tokenizer: Tokenizer, tokens: int
) -> None:
    prompt = exact_prompt(tokenizer, tokens, "seed")
    assert len(prompt.ids) == tokens
    assert tuple(tokenizer.encode(prompt.text, add_special_tokens=False).ids) == prompt.ids


def test_the_same_seed_gives_the_same_prompt_and_another_seed_another(tokenizer: Tokenizer) -> None:
    assert exact_prompt(tokenizer, 32, "7/0") == exact_prompt(tokenizer, 32, "7/0")
    assert exact_prompt(tokenizer, 32, "7/0") != exact_prompt(tokenizer, 32, "7/1")


def test_no_two_requests_of_a_run_share_a_prompt_or_its_first_tokens(tokenizer: Tokenizer) -> None:
    profile = load_profile("decode_64_256_b8")
    prompts = profile_prompts(tokenizer, profile)
    assert len(prompts) == 8 * (profile.warmup_requests + profile.requests)
    assert len({prompt.sha256 for prompt in prompts.values()}) == len(prompts)
    # A prefix cache works on blocks of 16 tokens: no first block may be shared either.
    assert len({prompt.ids[:16] for prompt in prompts.values()}) == len(prompts)


def test_a_bucket_too_short_for_different_prompts_is_refused(tokenizer: Tokenizer) -> None:
    import dataclasses

    tiny = dataclasses.replace(load_profile("decode_64_256_b8"), prompt_tokens=1, requests=5)
    with pytest.raises(PreflightError, match="1 tokens are too short"):
        profile_prompts(tokenizer, tiny)


def test_a_tokenizer_that_does_not_round_trip_is_refused() -> None:
    lossy = Tokenizer(models.WordLevel({"the": 0, "[UNK]": 1}, unk_token="[UNK]"))
    lossy.normalizer = normalizers.Lowercase()
    lossy.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(PreflightError, match="no prompt of exactly 16 tokens"):
        exact_prompt(lossy, 16, "seed")


@pytest.mark.parametrize("content", [None, b"{}", b"\xff", b"not json"])
def test_a_broken_tokenizer_is_a_pack_error_that_names_the_file(
    tmp_path: Path, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(PackError, match=r"tokenizer\.json"):
        open_tokenizer(tmp_path)


def test_a_saved_tokenizer_opens(tmp_path: Path, tokenizer: Tokenizer) -> None:
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    opened = open_tokenizer(tmp_path)
    assert exact_prompt(opened, 16, "s") == exact_prompt(tokenizer, 16, "s")
