"""Strict contracts, profiles and hosts; `loader` has the rules, `label` says how a run earns its label."""

from lean.contracts.bench import Arrivals, BenchProfile
from lean.contracts.catalog import known_contract, load_contract, load_plan, load_profile
from lean.contracts.contract import (
    BaselineRules,
    Bucket,
    Contract,
    DecodePolicy,
    Encoding,
    KernelNeed,
    Target,
    TargetFacts,
    contract_sha256,
    encoded_contract,
    kernels_required,
)
from lean.contracts.host import LOOPBACK, Host, Hosts, load_hosts
from lean.contracts.label import LabelFacts, LabelVerdict, compute_label
from lean.contracts.loader import from_data, load, to_data
from lean.contracts.model import Geometry, Model, check_geometry, geometry_mismatches, model_facts

__all__ = [
    "LOOPBACK",
    "Arrivals",
    "BaselineRules",
    "BenchProfile",
    "Bucket",
    "Contract",
    "DecodePolicy",
    "Encoding",
    "Geometry",
    "Host",
    "Hosts",
    "KernelNeed",
    "LabelFacts",
    "LabelVerdict",
    "Model",
    "Target",
    "TargetFacts",
    "check_geometry",
    "compute_label",
    "contract_sha256",
    "encoded_contract",
    "from_data",
    "geometry_mismatches",
    "kernels_required",
    "known_contract",
    "load",
    "load_contract",
    "load_hosts",
    "load_plan",
    "load_profile",
    "model_facts",
    "to_data",
]
