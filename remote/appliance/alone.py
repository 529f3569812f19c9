"""One at a time: the jobs that work on a host's processor or GPU, and the check that no other one does."""

from __future__ import annotations

from collections.abc import Collection

from lean.errors import PreflightError
from remote.host.site import Site

SERVE_JOB = "serve"
BENCH_JOB = "bench"
IN_PROCESS_JOB = "measure"
KERNELS_JOB = "kernels"
TUNE_JOB = "tune"
ACCURACY_JOB = "accuracy"
REGIONS_JOB = "regions"
BASELINE_JOB = "baseline"
INSTALL_JOB = "baseline-install"
SOAK_JOB = "soak"
BUSY = (
    *(SERVE_JOB, IN_PROCESS_JOB, BENCH_JOB, KERNELS_JOB, TUNE_JOB, ACCURACY_JOB, REGIONS_JOB),
    *(BASELINE_JOB, INSTALL_JOB, SOAK_JOB),
)


def check_alone(site: Site, job: str, *, beside: Collection[str] = ()) -> None:
    """Raise `PreflightError` while another job than `job` and those it belongs `beside` works on the host."""
    for other in BUSY:
        if other != job and other not in beside and site.runs(other):
            raise PreflightError(
                f"{site.name}: job {other!r} runs, and nothing is measured beside it; wait for its end, or "
                f"stop it with: {stop_command(site, other)}"
            )


def stop_command(site: Site, job: str) -> str:
    """What ends a job, as a person types it."""
    if job == SERVE_JOB:
        return f"invoke remote.stop --host {site.name}"
    if job == BASELINE_JOB:
        return f"invoke remote.baseline-down --host {site.name}"
    return f"invoke remote.jobs --host {site.name} --stop {job}"
