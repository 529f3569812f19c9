"""A soak on a host that was never there: what is asked of it, and what is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lean.contracts import Host
from lean.errors import ContractError, InvalidRunError, PreflightError, error_document
from remote.appliance.service import ServeRequest, serve
from remote.appliance.soak import SoakRequest, soak, standing
from remote.console import Console
from remote.host.dry_run import DrySite

RUN = "/results/v1/far/soak/20261122T000000Z-quick-0123456"


class Far(DrySite):
    """Answers as a host would."""

    def __init__(self, running: tuple[str, ...] = (), error: InvalidRunError | None = None) -> None:
        super().__init__(Console(), "far", Host(hostname="203.0.113.9", contract="tiny-cpu"))
        self.running, self.error = running, error

    def runs(self, name: str) -> bool:
        return name in self.running

    def outcome(self, name: str, module: str, *arguments: str) -> dict[str, Any]:
        self.job(name, module, *arguments)
        document: dict[str, Any] = {"run": RUN, "place": RUN.removeprefix("/results/"), "verdicts": []}
        return document if self.error is None else document | error_document(self.error)

    def pull(self, source: str, target: Path) -> None:
        super().pull(source, target)
        target.mkdir(parents=True)


def test_a_plan_runs_as_a_job_on_the_pack_and_its_record_comes_home(tmp_path: Path) -> None:
    site = Far()
    found = soak(site, SoakRequest(plan="quick", pack="/packs/p"), results=tmp_path)
    job = next(step for step in site.steps if "lean.soak run" in step)
    assert job.startswith(
        "job soak: python -m lean.soak run --root '~/lean/soak' --plan quick --contract tiny-cpu"
    )
    assert "--runner torch --pack /packs/p" in job and "--resume" not in job and "--model" not in job
    assert found.path == tmp_path / "v1/far/soak/20261122T000000Z-quick-0123456" and found.path.is_dir()
    assert found.error is None


def test_resume_and_force_are_handed_on(tmp_path: Path) -> None:
    site = Far()
    soak(site, SoakRequest(plan="quick", pack="/packs/p", resume=True, force=True), results=tmp_path)
    assert any("--resume --force" in step for step in site.steps)


def test_a_soak_that_cannot_be_believed_comes_home_with_its_error(tmp_path: Path) -> None:
    found = soak(
        Far(error=InvalidRunError("too unsteady")), SoakRequest(plan="quick", pack="/p"), results=tmp_path
    )
    assert isinstance(found.error, InvalidRunError) and found.path.is_dir()


@pytest.mark.parametrize("job", ["soak", "serve", "bench", "baseline", "tune"])
def test_no_soak_begins_beside_other_work(tmp_path: Path, job: str) -> None:
    site = Far(running=(job,))
    with pytest.raises(PreflightError, match=f"job '{job}' runs"):
        soak(site, SoakRequest(plan="quick", pack="/p"), results=tmp_path)
    assert not any("lean.soak" in step for step in site.steps)


def test_nothing_is_served_beside_a_soak() -> None:
    with pytest.raises(PreflightError, match="a soak runs"):
        serve(Far(running=("soak",)), ServeRequest(pack="/p"))


def test_a_plan_that_is_not_there_is_named_before_anything_is_asked(tmp_path: Path) -> None:
    site = Far()
    before = list(site.steps)
    with pytest.raises(ContractError, match="no soak named 'slow'; known: quick"):
        soak(site, SoakRequest(plan="slow"), results=tmp_path)
    assert site.steps == before


def test_where_a_soak_is_is_one_short_question() -> None:
    site = Far()
    standing(site, "quick")
    assert "lean.soak show --root '~/lean/soak' --plan quick" in site.steps[-1]
