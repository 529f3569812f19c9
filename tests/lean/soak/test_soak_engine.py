"""Real engines of arms: what they are asked for, what they say, and that none is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from helpers import REPO, until
from soak_fakes import plan_of

from lean.bench.prompt import open_tokenizer
from lean.contracts import load_contract
from lean.contracts.soak import Arm, Limits
from lean.errors import ContractError, NotReadyError, PreflightError
from lean.jobs.process import ProcessIdentity, start_ticks
from lean.leanpack.build import BuildRequest, build_pack
from lean.leanpack.read import read_manifest
from lean.soak.engine import STARTED, EngineInputs, Instruments, end_left_behind, serving
from lean.soak.run import Soak, _check_same_engine, arm_rows, run_soak
from lean.soak.state import SoakState
from lean.soak.workload import Request, Workload, _made

LIMITS = Limits(ready_s=60.0, stop_s=10.0)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> EngineInputs:
    folder = tmp_path_factory.mktemp("packs")
    built = build_pack(
        BuildRequest(
            contract=load_contract("tiny-cpu"),
            model=REPO / "lean/demo/checkpoint",
            packs=folder,
            encoding="bf16",
            target="cpu",
        )
    )
    return EngineInputs(contract="tiny-cpu", pack=Path(built.path), runner="torch", venvs=folder / "venvs")


def test_an_arm_says_what_it_runs_with_and_leaves_no_process(inputs: EngineInputs, tmp_path: Path) -> None:
    arm = Arm(name="split4", split_k=4)
    with serving(arm, inputs, LIMITS, slots=2, length=320, folder=tmp_path / "e") as engine:
        engine.check()
        assert engine.effective["split_k"] == "4" and engine.effective["slots"] == "2"
        assert engine.lock == read_manifest(inputs.pack)[1] and engine.length >= 320
        pid = engine.process.pid
        assert ProcessIdentity(**json.loads((tmp_path / "e" / STARTED).read_text())).pid == pid
        os.killpg(pid, signal.SIGKILL)
        engine.process.wait(10)
        with pytest.raises(NotReadyError, match="arm split4: the engine ended with -9"):
            engine.check()
    assert start_ticks(pid) is None and not (tmp_path / "e" / STARTED).exists()


def test_an_arm_without_its_pack_names_the_verb_that_builds_one(inputs: EngineInputs, tmp_path: Path) -> None:
    arm = Arm(name="small", encoding="int4-codebook")
    with pytest.raises(PreflightError, match=r"invoke remote\.pack --encoding int4-codebook"), \
            serving(arm, inputs, LIMITS, slots=1, length=64, folder=tmp_path):  # fmt: skip
        pass


def test_a_profiler_that_is_not_installed_is_told_so(inputs: EngineInputs, tmp_path: Path) -> None:
    tools = Instruments(wrap=("/nonexistent/profiler", "-o", "{artifact}"))
    with pytest.raises(PreflightError, match=r"cannot be started: .*/nonexistent/profiler"), \
            serving(Arm(name="a"), inputs, LIMITS, slots=1, length=64, folder=tmp_path, instruments=tools) \
            as _:  # fmt: skip
        pass


def test_an_engine_that_a_killed_run_left_behind_is_ended(tmp_path: Path) -> None:
    folder = tmp_path / "whole" / "engine"
    folder.mkdir(parents=True)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    (folder / STARTED).write_text(json.dumps(asdict(ProcessIdentity.of(child.pid))))
    end_left_behind(tmp_path)
    assert child.wait(10) == -signal.SIGKILL and not (folder / STARTED).exists()
    (folder / STARTED).write_text("{")
    end_left_behind(tmp_path)  # what cannot be read names nobody


def test_an_engine_dies_with_the_run_that_started_it(inputs: EngineInputs, tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from lean.contracts.soak import Arm, Limits\n"
        "from lean.soak.engine import EngineInputs, serving\n"
        "pack, where = map(Path, sys.argv[1:])\n"
        "inputs = EngineInputs(contract='tiny-cpu', pack=pack, runner='torch', venvs=Path('/x'))\n"
        "with serving(Arm(name='a'), inputs, Limits(), slots=1, length=64, folder=where) as engine:\n"
        "    print(engine.process.pid, flush=True); time.sleep(60)\n"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", code, str(inputs.pack), str(tmp_path / "e")],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(REPO)},
    )
    assert run.stdout is not None
    pid = int(run.stdout.readline())
    run.kill()
    run.communicate()
    until(lambda: start_ticks(pid), lambda ticks: ticks is None)


@pytest.mark.slow
def test_cut_answers_do_not_count_and_perturbed_weights_answer_otherwise(
    inputs: EngineInputs, tmp_path: Path
) -> None:
    plan = plan_of(
        arms=[{"name": "whole"}, {"name": "cut", "control": "cut"}, {"name": "noise", "control": "weights"}],
        quality=None, long_decode=None, concurrent=None,
        conversations={"data": {"file": "x", "sha256": "0" * 64}, "conversations": 12, "prompt_tokens": 32,
                       "new_tokens": 8, "replays": 2},
    )  # fmt: skip
    tokenizer = open_tokenizer(inputs.pack / "tokenizer")
    replay: tuple[tuple[Request, ...], ...] = tuple(
        (replace(_made(tokenizer, 24, 8, f"{i}", 0), conversation=f"c{i}"),) for i in range(12)
    )
    workload = Workload(groups={"conversations": (replay, replay)}, configs={"conversations": {}})
    soak = Soak(
        state=SoakState.new(tmp_path, plan), workload=workload, inputs=inputs,
        lock=read_manifest(inputs.pack)[1], release="made", say=lambda line: None,
    )  # fmt: skip
    run_soak(soak)
    whole, cut, noise = arm_rows(soak.state)
    assert [arm.not_run for arm in (whole, cut, noise)] == [None] * 3
    assert all(row.whole for replay in whole.conversations for row in replay)
    assert [sum(not row.whole for row in replay) for replay in cut.conversations] == [1, 1]
    texts = [[row.text for row in arm.conversations[0]] for arm in (whole, noise)]
    assert texts[0] != texts[1]
    facts = {name: soak.state.arm_facts(name) for name in ("whole", "noise")}
    assert facts["noise"] is not None and facts["whole"] is not None
    assert facts["noise"]["lock"] != facts["whole"]["lock"]
    assert len(list((soak.state.folder / "perturbed").glob("tiny-cpu-*"))) == 1


def test_a_pack_that_is_not_the_soaks_is_refused(inputs: EngineInputs, tmp_path: Path) -> None:
    plan = plan_of()
    soak = Soak(
        state=SoakState.new(tmp_path, plan), workload=Workload(groups={}, configs={}), inputs=inputs,
        lock="7" * 64, release="made", say=lambda line: None,
    )  # fmt: skip
    with serving(plan.arms[0], inputs, LIMITS, slots=1, length=64, folder=tmp_path / "e") as engine, \
            pytest.raises(ContractError, match="the soak's pack is 77777777"):  # fmt: skip
        _check_same_engine(soak, plan.arms[0], engine)
