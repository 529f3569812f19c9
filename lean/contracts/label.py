"""The label of a run, computed from what happened and never an argument."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lean.contracts.bench import BenchProfile
from lean.contracts.contract import Contract

Label = Literal["fixed-contract", "exploratory"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelFacts:
    """What the label depends on beside contract and profile.

    `overridden`: fields of contract or profile changed on the command line. `weights`: what the pack says it
    holds. `source_matches`: the pack's source hashes equal those of the contract's pinned revision.
    `uncleared`: the pack's encoding was served although the host's precision gate had not cleared it.
    `options`: settings of the service that are not the default.
    """

    overridden: tuple[str, ...]
    weights: Literal["checkpoint", "random", "demo"]
    source_matches: bool
    lock_verified: bool
    fair: bool
    uncleared: bool = False
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelVerdict:
    """`reasons` says why a run is only exploratory; empty for a fixed-contract one."""

    label: Label
    reasons: tuple[str, ...]


def compute_label(contract: Contract, profile: BenchProfile, facts: LabelFacts) -> LabelVerdict:
    """`fixed-contract` only when nothing speaks against it (design: contracts, profiles, hosts)."""
    bucket = contract.bucket(profile.prompt_tokens, profile.decode_tokens)
    outside = bucket is None or profile.batch not in bucket.batch
    against = {
        f"contract {contract.id} is not official": not contract.official,
        f"encoding {contract.encoding} changes the checkpoint's weights": contract.encoding != "bf16",
        f"overridden: {', '.join(facts.overridden)}": bool(facts.overridden),
        f"profile {profile.id} is no bucket of the contract": outside,
        f"{profile.load}, not rounds of as many streams as slots": not profile.in_rounds_of_batch,
        f"pack weights are {facts.weights}": facts.weights != "checkpoint",
        "pack sources differ from the pinned revision": not facts.source_matches,
        "pack LOCK not verified": not facts.lock_verified,
        "fairness gate not passed": not facts.fair,
        f"the host's precision gate has not cleared {contract.encoding}": facts.uncleared,
        f"not the default: {', '.join(facts.options)}": bool(facts.options),
    }
    reasons = tuple(reason for reason, holds in against.items() if holds)
    return LabelVerdict(label="exploratory" if reasons else "fixed-contract", reasons=reasons)
