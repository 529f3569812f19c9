"""llama-benchy, unmodified, against the real service: no internet, the book comes from this machine."""

import http.server
import json
import os
import pydoc_data.topics
import subprocess
import threading

import pytest


@pytest.fixture
def book_url():
    """A server with one book: Python's own language reference."""
    text = "\n".join(pydoc_data.topics.topics.values()).encode()

    class Book(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Book) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/book.txt"
        server.shutdown()
        thread.join()


def test_llama_benchy_measures_prompt_and_generation(
    running_service, oracle_python, demo_pack, book_url, tmp_path
):
    program = oracle_python.with_name("llama-benchy")
    if not program.exists():
        pytest.skip(f"no llama-benchy beside {oracle_python}")
    result = tmp_path / "result.json"
    command = [str(program), "--base-url", f"{running_service.url}/v1", "--model", "leanstack/demo-5m"]
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
