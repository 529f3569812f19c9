"""Something that serves on a host for the time of a measurement, and ends with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from lean.errors import Interrupted, NotReadyError, UnreachableError
from remote.appliance.alone import stop_command
from remote.host.site import Site


@contextmanager
def own(site: Site, what: str, *, job: str, measurement: str, stop: Callable[[], object]) -> Iterator[None]:
    """`stop` what serves as `job` when the block ends; messages call it `what`.

    On Ctrl-C the job `measurement` is stopped with it, since it cannot go on alone; when the link is lost,
    both go on. Errors: the block's, with how to end what may still run; of a block that went well, `stop`'s.
    """
    try:
        try:
            yield
        except UnreachableError as error:
            raise type(error)(
                f"{error} On {site.name} {what} goes on too; end it with: {stop_command(site, job)}"
            ) from None
        except Interrupted:
            with suppress(NotReadyError):
                site.stop(measurement)
            _stop_quietly(stop)
            raise Interrupted(
                f"interrupted; the measurement and {what} were stopped; what it left: "
                f"invoke remote.jobs --host {site.name} --follow {measurement}"
            ) from None
        except BaseException:
            _stop_quietly(stop)
            raise
        else:
            stop()
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted again; the jobs {measurement!r} and {job!r} may still run, "
            f"see: invoke remote.jobs --host {site.name}"
        ) from None


def _stop_quietly(stop: Callable[[], object]) -> None:
    """`stop` while another error is on its way, which says more than that nothing ran."""
    with suppress(NotReadyError):
        stop()
