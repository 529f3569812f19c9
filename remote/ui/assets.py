"""The page's own files, read once at the start: no path of a request ever reaches the file system."""

from __future__ import annotations

from importlib.resources import files

from starlette.exceptions import HTTPException
from starlette.responses import Response

_TYPES = {
    "html": "text/html",
    "css": "text/css",
    "js": "text/javascript",
    "svg": "image/svg+xml",
}


class Assets:
    """The files of `remote/ui/static` by name."""

    def __init__(self) -> None:
        self._files = {
            entry.name: entry.read_bytes()
            for entry in files("remote.ui").joinpath("static").iterdir()
            if entry.name.rpartition(".")[2] in _TYPES
        }

    def response(self, name: str) -> Response:
        """The file of this very name. Errors: `HTTPException` 404."""
        if name not in self._files:
            raise HTTPException(404)
        return Response(self._files[name], media_type=_TYPES[name.rpartition(".")[2]])
