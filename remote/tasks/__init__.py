"""The verbs, one module a namespace. A task parses, calls one function and renders what it returns."""

from __future__ import annotations

from invoke import Collection

from remote.tasks import appliance, demo, host, results, service, show

remote = Collection("remote")
for task in (
    *(host.up, host.down, host.doctor, host.bootstrap, host.sync, host.push, host.pull, host.jobs),
    *(appliance.verify, appliance.fetch, appliance.probe, appliance.pack, appliance.layout),
    *(
        service.serve,
        service.status,
        service.logs,
        service.stop,
        service.forward,
        service.bench,
        service.costs,
    ),
):
    remote.add_task(task)

pack = Collection("pack")
pack.add_task(appliance.inspect)

namespace = Collection(remote, pack, results.namespace, show.namespace)
namespace.add_task(demo.demo)

__all__ = ["namespace"]
