"""The verbs, one module a namespace. A task parses, calls one function and renders what it returns."""

from __future__ import annotations

from invoke import Collection

from remote.tasks import show

namespace = Collection(show.namespace)

__all__ = ["namespace"]
