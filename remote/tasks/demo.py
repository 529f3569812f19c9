"""The whole loop as one verb."""

from __future__ import annotations

from invoke import Exit

from remote.console import Console
from remote.tasks.results import run_table
from remote.tasks.verb import verb


@verb(profile="a profile of profiles/bench")
def demo(
    console: Console, host: str | None = None, profile: str = "decode_64_256", dry_run: bool = False
) -> None:
    """The whole loop on the embedded host: reach, sync, verify, fetch, pack, serve, measure, pull, show."""
    from lean.bench.results import show_run
    from remote.loop import whole_loop

    run = whole_loop(console, host, profile, dry_run=dry_run)
    if dry_run:
        return
    console.result(
        run.document | {"path": str(run.path)}, lambda: run_table(console, run.path, show_run(run.path))
    )
    if run.error is not None:
        raise Exit(f"error: {run.error}", code=run.error.exit_code)  # the document has been printed
