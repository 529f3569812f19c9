"""The accuracy of an encoded pack on a host: measure there, bring the record home."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remote.appliance.alone import ACCURACY_JOB
from remote.appliance.bench import runner_of
from remote.appliance.kept import measure_and_keep
from remote.appliance.models import newest_pack
from remote.host.site import Site
from remote.ssh.command import plain_path


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyRequest:
    """What to compare: paths on the host, `against` the contract's newest pack by default.

    `prompts` passages, `tokens` greedy tokens behind each; what is left out is the host program's own choice.
    `text`: a path on the host. `runner`: the contract's own when left out.
    """

    pack: str
    against: str | None = None
    prompts: int | None = None
    tokens: int | None = None
    text: str | None = None
    runner: str | None = None


def measure_accuracy(site: Site, request: AccuracyRequest, *, results: Path) -> dict[str, Any]:
    """Compare a pack with the bf16 pack of the same weights and pull the record below `results`.

    The document's `record` is its folder here. Errors: `PreflightError` while the host serves or measures,
    and those of `lean.accuracy`.
    """
    pack = plain_path("pack", request.pack)
    against = plain_path("pack", request.against or newest_pack(site))
    arguments = ["--pack", pack, "--against", against, "--runner", request.runner or runner_of(site)]
    for flag, value in (("--prompts", request.prompts), ("--tokens", request.tokens)):
        arguments += [flag, str(value)] if value is not None else []
    arguments += ["--text", plain_path("text", request.text)] if request.text else []
    return measure_and_keep(site, ACCURACY_JOB, "lean.accuracy", *arguments, results=results)
