"""The verbs, one module a namespace. A task parses, calls one function and renders what it returns."""

from __future__ import annotations

from invoke import Collection

from remote.tasks import (
    appliance,
    baselines,
    host,
    ledger,
    results,
    service,
    show,
    soak,
    sweep,
    toolchain,
    ui,
)

remote = Collection(
    "remote",
    *(host.up, host.down, host.doctor, host.bootstrap, host.sync, host.push, host.pull, host.jobs),
    *(appliance.verify, toolchain.gate, toolchain.kernels, toolchain.tune, appliance.fetch, appliance.relay),
    *(appliance.probe, appliance.pack, appliance.layout),
    *(service.serve, service.status, service.logs, service.stop, service.forward),
    *(baselines.baseline, baselines.baseline_up, baselines.baseline_down, baselines.compare),
    *(service.bench, sweep.sweep, soak.soak),
    *(service.accuracy, service.regions, service.costs, service.transfers),
)
pack = Collection("pack", appliance.inspect)
namespace = Collection(
    *(remote, pack, results.namespace, ledger.namespace, show.namespace),
    *(service.demo, ui.ui),
)

__all__ = ["namespace"]
