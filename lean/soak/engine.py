"""An arm that serves: start its engine, read its settings back, end it. What it says of itself counts."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

from lean.bearer import ensure_token, read_token
from lean.bench.dialect import DIALECTS, VLLM, Dialect
from lean.child import await_ready, begin, end, last_words
from lean.contracts.soak import OURS, Arm, Limits
from lean.errors import ContractError, NotReadyError, PreflightError
from lean.jobs.process import ProcessIdentity
from lean.leanpack.listing import list_packs
from lean.soak.controlled import controlled
from lean.soak.perturb import perturbed_pack

NOISE = 0.10  # of each matrix's standard deviation, in an arm whose weights are perturbed: docs/soak.md
ARTIFACT = "artifact"  # what a profiler around the engine leaves begins with this name
STARTED = "process.json"  # which process an engine is, while it runs


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInputs:
    """What engines are started from on this host.

    `pack`: ours of the contract in bf16, others are found beside it. `model`: the checkpoint that another
    system serves. `gate`: where the precision gate's records lie. `runner`: ours where an arm names none.
    """

    contract: str
    pack: Path
    runner: str
    venvs: Path
    model: Path | None = None
    gate: tuple[Path, ...] = ()
    gpu: str = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruments:
    """What a supplementary pass adds: a file for the times of regions, or a command around the engine."""

    regions: Path | None = None
    wrap: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """One that serves. `effective`: the settings it says it runs with; `lock`: of its weights, as it says."""

    arm: str
    url: str
    token: str | None
    model: str
    dialect: Dialect
    lock: str
    length: int
    effective: Mapping[str, str]
    ready: Mapping[str, Any]
    process: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        """That it lives, answers, and is the one that was started.

        Errors: `NotReadyError` with its last words, or naming what answers in its place.
        """
        if self.process.poll() is not None:
            code = self.process.returncode
            raise NotReadyError(f"arm {self.arm}: the engine ended with {code}: {last_words(self.log)}")
        ours = self.effective["engine"] == OURS
        lock, health = identity(self.url, self.token, ours=ours)
        if lock is not None and lock != self.lock:
            raise NotReadyError(
                f"arm {self.arm}: {self.url} answers with weights {lock[:8]}, and this arm's are "
                f"{self.lock[:8]}; another engine took its place"
            )
        found = effective(self.ready, health)
        if ours and found != self.effective:
            raise NotReadyError(
                f"arm {self.arm}: {self.url} now runs with {found}; another engine took its place"
            )


def identity(url: str, token: str | None, *, ours: bool) -> tuple[str | None, dict[str, Any]]:
    """The lock that a service of ours names, None for another system, and its health document.

    Errors: `NotReadyError` when it does not answer as a healthy one does.
    """
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    try:
        answer = httpx.get(f"{url}/health", headers=headers, timeout=10.0, trust_env=False)
    except httpx.HTTPError as error:
        raise NotReadyError(f"{url}/health: {type(error).__name__}: {error}") from None
    if answer.status_code != 200:
        raise NotReadyError(f"{url}/health says {answer.status_code}: {answer.text[:200]}")
    if not ours:
        return None, {}
    try:
        document = answer.json()
        return str(document["lock"]), dict(document)
    except (ValueError, LookupError, TypeError):
        raise NotReadyError(f"{url}/health is not that of our service: {answer.text[:200]}") from None


def expected(arm: Arm, inputs: EngineInputs, slots: int) -> dict[str, str]:
    """The settings that an arm asks for, in the engine's words; those it leaves open are not in it."""
    asked = {"slots": str(arm.slots or slots)}
    if arm.threads is not None:
        asked["threads"] = str(arm.threads)
    if arm.engine != OURS:
        return asked | {"engine": arm.engine}
    contract = inputs.contract if arm.encoding in (None, "bf16") else f"{inputs.contract}-{arm.encoding}"
    return asked | {
        "engine": OURS,
        "contract": contract,
        "encoding": arm.encoding or "bf16",
        "runner": arm.runner or inputs.runner,
        "bucket": "by need" if arm.bucket is None else str(arm.bucket),
        "split_k": "whole" if arm.split_k is None else str(arm.split_k),
    }


def effective(ready: Mapping[str, Any], health: Mapping[str, Any]) -> dict[str, str]:
    """The settings in an engine's ready document; of ours, the runner's as /health says them."""
    if "system" in ready:
        return {
            "engine": str(ready["system"]),
            "version": str(ready["version"]),
            **{name: str(ready[name]) for name in ("slots", "threads", "device", "compute_dtype")},
        }
    runner = health["runner"]
    return {
        "engine": OURS,
        "contract": str(ready["contract"]),
        "encoding": str(ready["gate"]["encoding"]),
        "runner": str(runner["name"]),
        "bucket": "by need" if ready.get("bucket") is None else str(ready["bucket"]),
        "split_k": "whole" if runner.get("split_k") is None else str(runner["split_k"]),
        "regions": "off" if ready.get("regions") is None else "timed",
        **{name: str(runner[name]) for name in ("slots", "threads", "device", "compute_dtype")},
    }


def check_effective(arm: Arm, asked: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Raise `ContractError` naming each setting that the engine runs with and was not asked for."""
    wrong = [f"{name} {value} (it says {found.get(name)})" for name, value in asked.items()
             if found.get(name) != value]  # fmt: skip
    if wrong:
        raise ContractError(
            f"arm {arm.name}: the engine does not run with what was asked: {', '.join(wrong)}; "
            "nothing of it is measured"
        )


@contextlib.contextmanager
def serving(
    arm: Arm, inputs: EngineInputs, limits: Limits, *, slots: int, length: int, folder: Path,
    instruments: Instruments | None = None,
) -> Iterator[Engine]:  # fmt: skip
    """The arm's engine for the time of the block, checked to be what was asked; its files are in `folder`.

    `length`: positions that one stream may take; `limits`: until it is ready, and to end. Errors:
    `NotReadyError` with its last words when it does not start in time, `ContractError` when it runs with
    other settings, `PreflightError` without its pack.
    """
    ready_file, log, token_file = folder / "ready.json", folder / "engine.log", folder / "token"
    tools = instruments or Instruments()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        ready_file.unlink(missing_ok=True)
        if arm.engine == OURS:
            ensure_token(token_file)
            argv = _ours(arm, inputs, slots, token_file, ready_file, folder, tools)
        else:
            argv = _theirs(arm, inputs, slots, length, ready_file)
        wrapped = [word.replace("{artifact}", str(folder / ARTIFACT)) for word in tools.wrap] + argv
        process = _noted(begin(wrapped, log), folder)
    except OSError as error:
        raise PreflightError(f"arm {arm.name}: its engine cannot be started: {error}") from None
    try:
        ready = await_ready(
            process, ready_file, log, limit_s=limits.ready_s, who=f"arm {arm.name}: the engine"
        )
        token = read_token(token_file).decode() if arm.engine == OURS else None
        url = str(ready["url"])
        with contextlib.ExitStack() as stack:
            if arm.control in ("slower", "cut"):
                url = stack.enter_context(controlled(url, arm.control, folder=folder))
            lock, health = identity(url, token, ours=arm.engine == OURS)
            try:
                found = effective(ready, health)
            except (LookupError, TypeError, AttributeError) as error:
                raise NotReadyError(
                    f"arm {arm.name}: its engine does not say its settings: {error!r}"
                ) from None
            check_effective(arm, expected(arm, inputs, slots), found)
            yield Engine(
                arm=arm.name,
                url=url,
                token=token,
                model=str(ready["model"]),
                dialect=VLLM if arm.engine == OURS else DIALECTS[str(ready["dialect"])],
                lock=lock or str(ready["weights_sha256"]),
                length=int(health["runner"]["max_length"] if health else ready["length"]),
                effective=found,
                ready=ready,
                process=process,
                log=log,
            )
    finally:
        end(process, limits.stop_s)
        for gone in (ready_file, folder / STARTED):
            gone.unlink(missing_ok=True)


def end_left_behind(arms: Path) -> None:
    """Kill engines of a run that was killed itself: nothing is measured beside them."""
    for file in arms.glob(f"*/*/{STARTED}"):
        with contextlib.suppress(OSError, ValueError, TypeError):
            ProcessIdentity(**json.loads(file.read_text(encoding="utf-8"))).signal_group(signal.SIGKILL)
        file.unlink(missing_ok=True)


def _noted(process: subprocess.Popen[bytes], folder: Path) -> subprocess.Popen[bytes]:
    """The engine that was just started, with a note of which process it is."""
    with contextlib.suppress(ProcessLookupError):
        (folder / STARTED).write_text(json.dumps(asdict(ProcessIdentity.of(process.pid))), encoding="utf-8")
    return process


def find_pack(inputs: EngineInputs, arm: Arm, folder: Path) -> Path:
    """The pack of an arm: the inputs's own, its sibling in another encoding, or a perturbed copy.

    Errors: `PreflightError` naming the verb that builds the one that is missing.
    """
    if arm.encoding in (None, "bf16"):
        found = inputs.pack
    else:
        listed = list_packs(inputs.pack.parent, f"{inputs.contract}-{arm.encoding}").packs
        if not listed:
            raise PreflightError(
                f"arm {arm.name}: there is no pack of {inputs.contract} in {arm.encoding}; "
                f"run: invoke remote.pack --encoding {arm.encoding}"
            )
        found = Path(listed[-1].path)
    if arm.control == "weights":
        return perturbed_pack(found, folder.parents[2] / "perturbed", share=NOISE, seed=1)
    return found


def _ours(
    arm: Arm, inputs: EngineInputs, slots: int, token: Path, ready: Path, folder: Path, tools: Instruments
) -> list[str]:
    argv = [sys.executable, "-m", "lean.leanserve", "serve", "--pack", str(find_pack(inputs, arm, folder))]
    argv += ["--runner", arm.runner or inputs.runner, "--slots", str(arm.slots or slots)]
    argv += ["--token-file", str(token), "--ready-file", str(ready), "--drain-seconds", "5"]
    for record in inputs.gate:
        argv += ["--gate", str(record)]
    for flag, value in (
        ("--bucket", arm.bucket),
        ("--threads", arm.threads),
        ("--split-k", arm.split_k),
        ("--regions", tools.regions),
    ):
        argv += [flag, str(value)] if value is not None else []
    return argv


def _theirs(arm: Arm, inputs: EngineInputs, slots: int, length: int, ready: Path) -> list[str]:
    if inputs.model is None:
        raise PreflightError(f"arm {arm.name}: {arm.engine} serves a checkpoint; fetch one and name it")
    argv = [sys.executable, "-m", "lean.baseline", "serve", "--system", arm.engine]
    argv += ["--venvs", str(inputs.venvs), "--model", str(inputs.model), "--contract", inputs.contract]
    argv += ["--slots", str(arm.slots or slots), "--length", str(length), "--gpu", inputs.gpu]
    argv += ["--threads", str(arm.threads)] if arm.threads is not None else []
    return [*argv, "--ready-file", str(ready)]
