"""A sweep of a host that was never there: its order, what it keeps, what it goes on with, what it says."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import REPO

from lean.bench.results import list_runs
from lean.contracts import Host
from lean.errors import (
    ContractError,
    Interrupted,
    InvalidRunError,
    LeanError,
    LinkLost,
    NotReadyError,
    PreflightError,
    UsageError,
    error_document,
)
from remote.appliance import sweep_journal
from remote.appliance.bench import Load
from remote.appliance.sweep import resume_command, run_sweep, sweep_failure
from remote.appliance.sweep_journal import JOURNAL, Journal, find_journal, open_journal
from remote.appliance.sweep_plan import SweepPlan, figures_of, plan_cells
from remote.appliance.sweep_summary import COLUMNS, problems, summary_page, summary_rows
from remote.console import Console
from remote.host.dry_run import DrySite

PLAN = SweepPlan(profiles=("decode_64_256", "decode_64_256_b2"), runs=2, pack="/packs/p-0123abcd")


def summary(median: float) -> dict[str, float]:
    return {"median": median, "maximum": median + 5}


class Far(DrySite):
    """Answers as a host would. `faults`: by the number of the measurement, from 1, what happens instead."""

    def __init__(self, faults: dict[int, BaseException] | None = None) -> None:
        super().__init__(Console(), "far", Host(hostname="203.0.113.9", contract="tiny-cpu"))
        self.faults = faults or {}
        self.measured: list[tuple[str, ...]] = []
        self.starts: list[tuple[str, ...]] = []
        self.serving = False
        self.dead_after: int | None = None
        self.no_service: LeanError | None = None

    def ready(self, name: str, ready_file: str) -> dict[str, Any] | None:
        return None if not self.serving else {"url": "http://127.0.0.1:1", "runner": {"name": "torch"}}

    def service(
        self, name: str, module: str, *arguments: str, ready_file: str, timeout_s: float
    ) -> dict[str, Any]:
        self.starts.append(arguments)
        if self.no_service is not None and arguments[arguments.index("--slots") + 1] == "2":
            raise self.no_service
        self.serving = True
        return {"url": "http://127.0.0.1:1", "runner": {"name": "torch"}}

    def stop(self, name: str, *, grace_s: float = 10.0) -> dict[str, Any]:
        self.serving = self.serving and name != "serve"
        return super().stop(name, grace_s=grace_s)

    def outcome(self, name: str, module: str, *arguments: str) -> dict[str, Any]:
        self.measured.append(arguments)
        number = len(self.measured)
        if number == self.dead_after:
            self.serving = False
        fault = self.faults.get(number)
        if fault is not None and not isinstance(fault, InvalidRunError):
            raise fault
        profile = arguments[arguments.index("--profile") + 1]
        run = f"20260101T0000{number:02}.000Z-0123456"
        speed = 100.0 * number
        document: dict[str, Any] = {
            "run": f"~/lean/results/{run}",
            "place": f"v1/far/{profile}/{run}",
            "status": "ok" if fault is None else "invalid",
            "label": "exploratory",
            "metrics": {"tokens_per_s": summary(speed), "ttft_s": summary(0.010 * number), "tpot_s": None},
            "load": None,
        }
        return document if fault is None else document | error_document(fault)

    def pull(self, source: str, target: Path) -> None:
        target.mkdir(parents=True)  # an existing one is an error: nothing is overwritten
        (target / "run.json").write_text("{}")


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Journal]:
    """A sweep below `tmp_path`, as the verb begins or resumes it."""
    monkeypatch.setattr(sweep_journal, "STATE", tmp_path / "state")

    def begin(plan: SweepPlan = PLAN, name: str = "s") -> Journal:
        return open_journal(tmp_path, "far", name, plan)

    return begin


def states(journal: Journal) -> list[str]:
    """As the folder has them, not the memory."""
    assert journal.folder is not None
    return [cell["state"] for cell in json.loads((journal.folder / JOURNAL).read_text())["cells"]]


# --- the plan


def test_cells_of_one_service_come_together_and_every_first_run_before_a_second() -> None:
    cells = plan_cells(dataclasses.replace(PLAN, loads=(Load(), Load(rate_per_s=2.0))))
    assert [(c.setting.slots, c.run, c.how.rate_per_s) for c in cells] == [
        *[(1, 1, None), (1, 1, 2.0), (1, 2, None), (1, 2, 2.0)],
        *[(2, 1, None), (2, 1, 2.0), (2, 2, None), (2, 2, 2.0)],
    ]


def test_every_runner_split_k_profile_and_load_is_a_setting() -> None:
    plan = SweepPlan(
        profiles=("decode_64_256", "decode_64_512"),
        runs=3,
        runners=("cuda", "torch"),
        split_ks=(None, 4),
        loads=(Load(concurrency=1), Load(concurrency=9), Load(rate_per_s=1.0)),
    )
    cells = plan_cells(plan)
    assert len(cells) == len(set(cells)) == 3 * 2 * 2 * 2 * 3
    assert set(Counter(cell.setting for cell in cells).values()) == {3}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"profiles": ("nothing",)}, "no bench named 'nothing'"),
        ({"requests": 2}, "requests: expected at least 3, got 2"),
        ({"loads": (Load(concurrency=9999),)}, "concurrency: expected 1 to 4096"),
        ({"loads": (Load(rate_per_s=0.0),)}, "rate_per_s: expected more than 0"),
    ],
)
def test_a_plan_with_a_cell_that_cannot_be_is_refused_whole(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ContractError, match=problem):
        plan_cells(dataclasses.replace(PLAN, **changes))


def test_a_plan_of_more_cells_than_anybody_wants_is_refused() -> None:
    with pytest.raises(UsageError, match="at most 10000"):
        plan_cells(dataclasses.replace(PLAN, runs=5001))


# --- a sweep that goes well


def test_every_cell_is_measured_once_on_one_service_for_those_that_share_it(
    tmp_path: Path, begun: Callable[..., Journal]
) -> None:
    site, journal = Far(), begun()
    run_sweep(site, journal, results=tmp_path)
    assert states(journal) == ["done"] * 4 and sweep_failure(journal) is None
    assert [start[start.index("--slots") + 1] for start in site.starts] == ["1", "2"]
    assert site.steps.count("stop job serve") == 2 and not site.serving
    places = [cell.place for cell in journal.sweep.cells]
    assert len(set(places)) == 4 and all((tmp_path / str(place) / "run.json").exists() for place in places)


def test_the_journal_names_a_pack_and_no_home(tmp_path: Path, begun: Callable[..., Journal]) -> None:
    site, journal = Far(), begun()
    run_sweep(site, journal, results=tmp_path)
    assert journal.sweep.pack == "p-0123abcd"
    chosen = begun(dataclasses.replace(PLAN, pack=None), name="newest")
    assert chosen.sweep.pack is None
    run_sweep(site := Far(), chosen, results=tmp_path / "elsewhere")
    assert chosen.folder is not None and "/" not in str(chosen.sweep.pack)
    packs = {words[words.index("--pack") + 1] for words in site.measured}
    assert packs == {f"{site.paths.packs}/{chosen.sweep.pack}"}


def test_a_fresh_sweep_starts_a_service_for_every_cell(tmp_path: Path, begun: Callable[..., Journal]) -> None:
    site = Far()
    run_sweep(site, begun(dataclasses.replace(PLAN, fresh=True)), results=tmp_path)
    assert len(site.starts) == 4 and not site.serving


def test_the_settings_of_a_cell_reach_the_service_and_the_measurement(
    tmp_path: Path, begun: Callable[..., Journal]
) -> None:
    loads = (Load(concurrency=3), Load(rate_per_s=2.5, arrivals="fixed"))
    plan = SweepPlan(
        profiles=("decode_64_256",),
        runs=1,
        runners=("cuda",),
        split_ks=(4,),
        loads=loads,
        requests=5,
        pack="/p",
    )
    site = Far()
    run_sweep(site, begun(plan), results=tmp_path)
    (start,) = site.starts
    assert start[3:5] == ("--runner", "cuda") and start[start.index("--split-k") + 1] == "4"
    closed, opened = (" ".join(words) for words in site.measured)
    assert closed.endswith("--requests 5 --concurrency 3")
    assert opened.endswith("--requests 5 --rate 2.5 --arrivals fixed")


# --- what goes wrong


def test_a_cell_that_fails_is_named_and_the_rest_goes_on(
    tmp_path: Path, begun: Callable[..., Journal]
) -> None:
    site, journal = Far({2: PreflightError("no disk there")}), begun()
    run_sweep(site, journal, results=tmp_path)
    assert states(journal) == ["done", "failed", "done", "done"]
    failure = sweep_failure(journal)
    assert isinstance(failure, PreflightError)
    assert "1 of 4 cells have no run that counts, the first is decode_64_256, " in str(failure)
    assert "run 2: no disk there; go on with: invoke remote.sweep --host far --resume " in str(failure)
    (line,) = problems(journal.sweep)
    assert line.endswith("run 2: failed, PreflightError: no disk there")
    assert journal.folder is not None and "no disk there" in (journal.folder / "summary.md").read_text()


def test_the_same_sweep_again_does_what_is_missing_and_overwrites_nothing(
    tmp_path: Path, begun: Callable[..., Journal]
) -> None:
    first = begun()
    run_sweep(Far({2: PreflightError("no disk")}), first, results=tmp_path)
    kept = {cell.place for cell in first.sweep.cells if cell.place}
    again = begun()
    assert again.folder == first.folder
    site = Far()
    site.measured += [("earlier",)] * 7  # its runs have other names
    run_sweep(site, again, results=tmp_path)
    assert len(site.measured) == 8 and states(again) == ["done"] * 4
    assert kept < {cell.place for cell in again.sweep.cells}
    assert [cell.attempts for cell in again.sweep.cells] == [1, 2, 1, 1]
    third = begun()
    assert third.folder != first.folder and third.sweep.missing == (0, 1, 2, 3)


def test_another_plan_of_the_same_name_is_another_sweep(begun: Callable[..., Journal]) -> None:
    assert begun().folder == begun().folder != begun(dataclasses.replace(PLAN, runs=3)).folder


def test_a_run_that_does_not_count_is_kept_named_and_not_measured_again(
    tmp_path: Path, begun: Callable[..., Journal]
) -> None:
    site, journal = Far({3: InvalidRunError("unfair: 63 tokens")}), begun()
    run_sweep(site, journal, results=tmp_path)
    assert states(journal) == ["done", "done", "invalid", "done"] and journal.sweep.missing == ()
    assert (tmp_path / str(journal.sweep.cells[2].place)).is_dir()
    failure = sweep_failure(journal)
    assert isinstance(failure, InvalidRunError) and "go on with" not in str(failure)
    assert summary_rows(journal.sweep)[1][4] == "1 of 2"


def test_ctrl_c_ends_the_sweep_stops_what_runs_and_says_how_to_go_on(
    tmp_path: Path, begun: Callable[..., Journal]
) -> None:
    site, journal = Far({2: Interrupted("detached")}), begun()
    with pytest.raises(Interrupted, match=r"go on with: invoke remote\.sweep --host far --resume 2"):
        run_sweep(site, journal, results=tmp_path)
    assert states(journal) == ["done", "interrupted", "planned", "planned"]
    assert not site.serving and "stop job bench" in site.steps
    resumed = find_journal(tmp_path, "far", "s")
    run_sweep(after := Far(), resumed, results=tmp_path / "elsewhere")
    assert len(after.measured) == 3 and states(resumed) == ["done"] * 4


def test_a_lost_link_ends_the_sweep_for_all_that_is_left_would_fail_too(
    tmp_path: Path, begun: Callable[..., Journal]
) -> None:
    site, journal = Far({1: LinkLost("the link was lost")}), begun()
    with pytest.raises(LinkLost, match="go on with"):
        run_sweep(site, journal, results=tmp_path)
    assert states(journal) == ["failed", "planned", "planned", "planned"] and len(site.measured) == 1


def test_cells_whose_service_does_not_start_fail_by_name_and_the_others_are_measured(
    tmp_path: Path, begun: Callable[..., Journal]
) -> None:
    site, journal = Far(), begun()
    site.no_service = NotReadyError("it ended before it was ready")
    run_sweep(site, journal, results=tmp_path)
    assert states(journal) == ["done", "done", "failed", "failed"]
    assert {cell.problem.kind for cell in journal.sweep.cells if cell.problem} == {"NotReadyError"}


def test_a_service_that_dies_with_a_cell_is_started_anew_for_the_next(
    tmp_path: Path, begun: Callable[..., Journal]
) -> None:
    site, journal = Far({1: NotReadyError("no service there")}), begun()
    site.dead_after = 1
    run_sweep(site, journal, results=tmp_path)
    assert states(journal) == ["failed", "done", "done", "done"] and len(site.starts) == 3


def test_a_sweep_that_was_killed_goes_on_with_the_cell_it_was_at(
    tmp_path: Path, begun: Callable[..., Journal]
) -> None:
    journal = begun()
    journal.put(0, journal.sweep.cells[0].again())
    assert states(journal)[0] == "running"
    site, resumed = Far(), find_journal(tmp_path, "far", "s")
    run_sweep(site, resumed, results=tmp_path)
    assert states(resumed) == ["done"] * 4 and resumed.sweep.cells[0].attempts == 2


def test_one_process_at_a_time_runs_a_sweep(begun: Callable[..., Journal]) -> None:
    with begun().lock(), pytest.raises(PreflightError, match="already being written by process"):
        begun().lock().__enter__()


def test_a_full_disk_is_named_and_the_journal_is_what_it_was(
    tmp_path: Path, begun: Callable[..., Journal], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    journal = begun()
    monkeypatch.setattr(sweep_journal, "replace_file", full)
    with pytest.raises(PreflightError, match=r"the sweep's journal: the disk of .* is full"):
        run_sweep(Far(), journal, results=tmp_path)
    assert states(journal) == ["planned"] * 4


@pytest.mark.parametrize("text", ["", "[1]", '{"schema": "sweep/v9"}', '{"schema": "sweep/v1", "x": 1}'])
def test_a_journal_that_is_none_is_named(begun: Callable[..., Journal], text: str) -> None:
    folder = begun().folder
    assert folder is not None
    (folder / JOURNAL).write_text(text)
    with pytest.raises(ContractError, match=str(folder / JOURNAL)):
        begun()


# --- the summary


def test_the_summary_has_medians_over_runs_worked_out_by_hand(
    tmp_path: Path, begun: Callable[..., Journal]
) -> None:
    journal = begun(dataclasses.replace(PLAN, profiles=("decode_64_256",), runs=3))
    run_sweep(Far(), journal, results=tmp_path)  # 100, 200 and 300 tokens/s; best rounds 5 above
    (row,) = summary_rows(journal.sweep)
    assert dict(zip(COLUMNS, row, strict=True)) == {
        **{"profile": "decode_64_256", "runner": "default", "split-K": "off"},
        **{"load": "1 stream(s) on 1 slot(s)", "runs": "3 of 3", "refused": "-", "goodput/s": "-"},
        **{"tokens/s": "200", "lowest": "100", "highest": "300", "best round": "305"},
        **{"TTFT ms": "20", "TPOT ms": "-"},
    }
    page = summary_page(journal.sweep)
    assert "3 cells: 3 done" in page and page.count("20260101T0000") == 3
    assert "different code" not in page


def test_an_open_loop_s_first_token_is_counted_from_when_it_was_due() -> None:
    load = {"due_ttft_s": summary(30.0), "goodput_per_s": 1.5, "refused": 2}
    found = figures_of({"metrics": {"ttft_s": summary(0.1), "tokens_per_s": summary(9.0)}, "load": load})
    assert (found.ttft_s, found.goodput_per_s, found.refused, found.best_tokens_per_s) == (30.0, 1.5, 2, 14.0)
    assert figures_of({"metrics": {"ttft_s": summary(0.1)}, "load": None}).ttft_s == 0.1
    assert figures_of({}).ttft_s is None


def test_runs_of_different_code_in_one_sweep_are_pointed_out(
    tmp_path: Path, begun: Callable[..., Journal]
) -> None:
    journal = begun()
    run_sweep(Far(), journal, results=tmp_path)
    place = "v1/far/decode_64_256/20260101T000001.000Z-fedcba9-dirty"
    other = journal.sweep.with_cell(0, dataclasses.replace(journal.sweep.cells[0], place=place))
    assert "different code:** 0123456, fedcba9-dirty" in summary_page(other)


def test_the_folder_of_sweeps_is_not_taken_for_runs(tmp_path: Path, begun: Callable[..., Journal]) -> None:
    begun()
    found = list_runs(tmp_path)
    assert (found.rows, found.broken) == ((), ())


def test_a_sweep_outside_the_checkout_is_resumed_where_it_is(
    tmp_path: Path, begun: Callable[..., Journal]
) -> None:
    journal = begun()
    assert journal.folder is not None
    assert resume_command(journal).endswith(f"--resume {journal.folder.name} --results {tmp_path}")


# --- the verb


def verb(*words: str) -> tuple[int, dict[str, Any]]:
    argv = [sys.executable, "-m", "invoke", "remote.sweep", "--host", "loopback", "--json", *words]
    done = subprocess.run(argv, cwd=REPO, capture_output=True, text=True, timeout=60)
    return done.returncode, json.loads(done.stdout)


def test_a_dry_run_prints_every_cell_and_writes_nothing(tmp_path: Path) -> None:
    code, document = verb(
        *("--dry-run", "--profile", "decode_64_256,decode_64_512", "--profile", "decode_64_256_b2"),
        *("--runs", "2", "--concurrency", "off,9", "--rate", "1.5", "--results", str(tmp_path)),
    )
    assert code == 0
    measured = [step for step in document["would"] if "lean.bench run" in step]
    assert len(measured) == 3 * 2 * 3
    assert sum("--concurrency 9" in step for step in measured) == 6
    assert sum("--rate 1.5" in step for step in measured) == 6
    assert sum("leanserve serve" in step for step in document["would"]) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--profile", "nothing"), 2, "no bench named 'nothing'"),
        (("--runs", "0"), 1, "runs: expected at least 1, got 0"),
        (("--runs", "many"), 1, "--runs 'many': expected a whole number"),
        (("--split-k", "2,x"), 1, "--split-k 2,x: invalid literal"),
        (("--profile", "decode_64_256,decode_64_256"), 1, "profiles: expected at least one, each once"),
        (("--arrivals", "fixed"), 1, "--arrivals says how the gaps of --rate are; give a rate"),
        (("--rate", "1", "--arrivals", "bursts"), 2, "arrivals: expected one of closed, fixed, poisson"),
        (("--name", "../up"), 1, "--name '../up': expected letters"),
        (("--resume", "nothing"), 1, "no sweep 'nothing' in "),
        (("--resume", "s", "--runs", "2"), 1, "--resume goes on with the plan it finds"),
    ],
)
def test_a_wrong_command_line_is_named_before_the_host_is_asked(
    tmp_path: Path, words: tuple[str, ...], code: int, message: str
) -> None:
    ended, document = verb(*words, "--results", str(tmp_path))
    assert ended == code and message in document["error"]["message"]
    assert list(tmp_path.iterdir()) == []
