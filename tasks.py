"""Every verb of the toolkit, as one Invoke namespace: `invoke --list`."""

from remote.tasks import namespace

__all__ = ["namespace"]
