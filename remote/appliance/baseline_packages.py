"""What another system is made of, for a host that cannot download it: downloaded here and sent."""

from __future__ import annotations

from lean.baseline.systems import system_named
from remote.host.site import Site
from remote.host.wheelhouse import Archive, Packages


def packages_of(site: Site, system: str, *where: str) -> str | None:
    """A folder of the host with every package of a system, or None when its environment is there already.

    `where`: how host programs are told the system and its environments. Errors: `PreflightError` for a
    system that the host cannot run or a package that cannot be had here, `IntegrityError` for other sources
    than the pinned ones.
    """
    found = site.call("lean.baseline", "needs", *where)
    if found["installed"] is True:
        return None
    site.console.line(f"{site.name} has no internet: downloading {system} for it here; this takes minutes")
    return site.packages(packages(system), str(found["environment"]), found["platform"])


def packages(system: str) -> Packages:
    """The pins of a system, by this checkout's own table, which the release on the host has too."""
    pinned = system_named(system)
    source = pinned.source
    return Packages(
        requirements=pinned.requirements,
        archives=(Archive(url=source.url, sha256=source.sha256),) if source is not None else (),
        otherwise="push a folder with every package to the host and name it with --bring",
    )
