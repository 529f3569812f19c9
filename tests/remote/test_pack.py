"""`remote.pack`: what the host is asked to build."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lean.contracts import Host
from lean.errors import UsageError
from remote.appliance import models
from remote.console import Console
from remote.host.dry_run import DrySite
from remote.tasks.appliance import seed_of


@pytest.fixture
def site() -> DrySite:
    return DrySite(Console(), "far", Host(hostname="203.0.113.9", contract="tiny-cpu"))


def asked(site: DrySite, **choices: Any) -> str:
    before = len(site.steps)
    models.pack(site, **choices)
    return " | ".join(site.steps[before:])


def test_random_weights_and_several_targets_reach_the_host_and_need_no_snapshot(site: DrySite) -> None:
    steps = asked(site, random=7, target="cpu,sm_90")
    assert steps.startswith("job pack: python -m lean.leanpack build --random=7 --contract tiny-cpu --packs ")
    assert steps.endswith(" --target=cpu,sm_90")


def test_kernels_that_were_compiled_elsewhere_stand_in_for_the_compiler(site: DrySite) -> None:
    steps = asked(site, random=1, target="sm_90", kernels="/data/kernels")
    assert steps.endswith(" --target=sm_90 --kernels /data/kernels")
    with pytest.raises(UsageError, match="kernels"):
        asked(site, random=1, kernels="--model")


def test_a_pack_without_a_seed_is_made_of_the_newest_snapshot(site: DrySite) -> None:
    steps = asked(site, target="sm_121")
    assert "lean.models list" in steps and "--random" not in steps and steps.endswith("--target=sm_121")


def test_a_model_and_a_seed_contradict_each_other(site: DrySite) -> None:
    with pytest.raises(UsageError, match="--model or --random, not both"):
        models.pack(site, model=str(Path("/m")), random=7)


@pytest.mark.parametrize("text", ["-1", "x", "1.5", "", "²", "9" * 5000])
def test_a_seed_that_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--random: expected a seed"):
        seed_of(text)
    assert (seed_of(None), seed_of("0")) == (None, 0)
