"""ModelScope as a source, through its own client library (`modelscope-hub`, which `modelscope` itself calls).

The endpoint is `MODELSCOPE_ENDPOINT`'s unless given, the token `MODELSCOPE_API_TOKEN`'s on the machine that
runs this. The listing states a sha256 for every file but no commit, so a branch is pinned by a hash over
that listing: bytes that changed in between do not have the listed hash and are refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from lean.errors import AuthError, TransferError, UnreachableError, UsageError
from lean.leanpack.snapshot import SourceKind
from lean.models.source import COMMIT, Listing, RemoteFile

DEFAULT_REVISION = "master"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelScopeSource:
    """`revision`: a branch, tag or commit. `private`: a folder for what the library wants to remember."""

    id: str
    revision: str | None
    endpoint: str | None
    private: Path
    kind: SourceKind = "modelscope"

    def listing(self) -> Listing:
        """List the revision's files and pin it: the commit asked for, else a hash of the listing."""
        import modelscope_hub

        requested = self.revision or DEFAULT_REVISION
        api, endpoint = self._api()
        with _translated(self.id, requested, endpoint):
            files = tuple(
                RemoteFile(path=entry.path, size=entry.size, sha256=entry.sha256)
                for entry in api.list_repo_files(self.id, "model", revision=requested)
                if not entry.is_dir
            )
        lines = "".join(sorted(f"{file.path}\t{file.size}\t{file.sha256}\n" for file in files))
        digest = hashlib.sha256(lines.encode(errors="replace")).hexdigest()
        return Listing(
            revision=requested if COMMIT.fullmatch(requested) else f"listing-{digest[:16]}",
            files=files,
            endpoint=endpoint,
            client=f"modelscope-hub {modelscope_hub.__version__}",
        )

    def address(self, listing: Listing, file: RemoteFile) -> str:
        """Where one file of the revision can be read."""
        query = urlencode({"Revision": self.revision or DEFAULT_REVISION, "FilePath": file.path})
        return f"{listing.endpoint}/api/v1/models/{self.id}/repo?{query}"

    def credentials(self) -> dict[str, str]:
        """Headers for the hub itself, and for nobody it redirects to."""
        token = os.environ.get("MODELSCOPE_API_TOKEN")
        return {"Cookie": f"m_session_id={token}"} if token else {}

    def download(self, listing: Listing, file: RemoteFile, folder: Path, *, force: bool) -> str | None:
        """Download one file; the library resumes its partial file beside it and checks the listed hash."""
        api, endpoint = self._api()
        with _translated(self.id, listing.revision, endpoint):
            api.download_file(
                self.id,
                "model",
                file.path,
                revision=self.revision or DEFAULT_REVISION,
                local_dir=folder,
                force=force,
                expected_sha256=file.sha256,
                file_size=file.size,
            )
        return None

    def _api(self) -> tuple[Any, str]:
        import modelscope_hub

        # An empty token keeps the library from unpickling stored cookies in search of one.
        token = os.environ.get("MODELSCOPE_API_TOKEN", "")
        config = modelscope_hub.HubConfig(
            endpoint=self.endpoint, token=token, cache_dir=self.private, config_dir=self.private
        )
        return modelscope_hub.HubApi(config), str(config.endpoint)


@contextlib.contextmanager
def _translated(model_id: str, revision: str, endpoint: str) -> Iterator[None]:
    """The library's failures as ours, without its texts: they may quote headers and signed addresses."""
    from modelscope_hub import errors

    where = f"{endpoint}: {model_id} at {revision}"
    try:
        yield
    except (errors.AuthenticationError, errors.PermissionDeniedError):
        raise AuthError(f"{where}: refused; set MODELSCOPE_API_TOKEN where this runs") from None
    except errors.NotExistError:
        raise UsageError(f"{where}: no such model, revision or file there") from None
    except errors.FileIntegrityError:
        raise TransferError(f"{where}: the bytes do not have the hash or the size of the listing") from None
    except errors.HubError as error:
        raise UnreachableError(
            f"{where}: cannot be reached ({type(error).__name__}); check the network"
        ) from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TransferError(f"{where}: not a hub's answer ({type(error).__name__}: {error})") from None
