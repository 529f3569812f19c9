"""llama-benchy, unmodified, against the real service: no internet, the book comes from this machine."""

import json
import os
import subprocess

import pytest

from lean.costs.book import serve_book
from lean.costs.clients import RUNS, clients_cost
from lean.errors import PreflightError


@pytest.fixture
def book_url():
    """A server with one book."""
    with serve_book() as url:
        yield url


@pytest.fixture
def llama_benchy(oracle_python):
    """The program, where it is installed."""
    program = oracle_python.with_name("llama-benchy")
    if not program.exists():
        pytest.skip(f"no llama-benchy beside {oracle_python}")
    return program


def test_llama_benchy_measures_prompt_and_generation(
    running_service, llama_benchy, demo_pack, book_url, tmp_path
):
    result = tmp_path / "result.json"
    command = [str(llama_benchy), "--base-url", f"{running_service.url}/v1", "--model", "leanstack/demo-5m"]
    command += ["--api-key", (running_service.folder / "token").read_text()]
    command += ["--tokenizer", str(demo_pack / "tokenizer"), "--book-url", book_url, "--exact-tg"]
    # Long enough that its own estimate of the latency, a request of one short prompt, stays well below it.
    command += ["--pp", "512", "--tg", "32", "--runs", "2", "--concurrency", "1", "2", "--no-cache"]
    command += ["--latency-mode", "generation", "--skip-coherence", "--exit-on-first-fail"]
    command += ["--format", "json", "--save-result", str(result)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=180,
        env={**os.environ, "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Error" not in done.stdout, done.stdout
    assert "No complete token_ids" not in done.stdout
    document = json.loads(result.read_text())
    runs = document["benchmarks"]
    assert [run["concurrency"] for run in runs] == [1, 2]
    for run in runs:
        assert run["tg_throughput"]["mean"] > 0 and run["pp_throughput"]["mean"] > 0


def test_both_clients_of_one_service_give_their_figures_of_every_request(demo_pack, llama_benchy):
    found = clients_cost(demo_pack, llama_benchy, rounds=1, threads=1, prompt=256, new=16)
    assert found.peer.startswith("llama-benchy ")
    for speeds in (found.ours, found.theirs):
        assert len(speeds.decode_tokens_per_s) == len(speeds.ttft_s) == RUNS
        assert min(speeds.decode_tokens_per_s) > 0 and min(speeds.ttft_s) > 0
    assert (len(found.decode_ratios), len(found.ttft_ratios)) == (1, 1)
    assert found.decode_ratio > 0 and found.ttft_ratio > 0


def test_a_client_that_is_not_there_is_named_before_a_service_starts(demo_pack, tmp_path):
    with pytest.raises(PreflightError, match="there is no such program; name llama-benchy's"):
        clients_cost(demo_pack, tmp_path / "nothing", rounds=1, threads=1, prompt=64, new=4)
