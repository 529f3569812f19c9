"""Hugging Face as a source, through its own client library.

The endpoint is `HF_ENDPOINT`'s unless given, the token `HF_TOKEN`'s on the machine that runs this. A file in
LFS comes with a sha256, any other with its git object id; both are checked by the caller.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lean.errors import AuthError, PackError, TransferError, UnreachableError, UsageError
from lean.files.safe_path import MAX_FILES
from lean.leanpack.snapshot import SourceKind
from lean.models.source import COMMIT, Listing, RemoteFile

DEFAULT_REVISION = "main"
SILENCE_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HuggingFaceSource:
    """`revision`: a branch, tag or commit, pinned to its commit before anything is downloaded."""

    id: str
    revision: str | None
    endpoint: str | None
    kind: SourceKind = "huggingface"

    def listing(self) -> Listing:
        """Resolve the revision to its commit and list that commit's files."""
        import huggingface_hub
        from huggingface_hub.hf_api import RepoFile

        huggingface_hub.set_client_factory(_bounded_client)
        requested = self.revision or DEFAULT_REVISION
        api = huggingface_hub.HfApi(endpoint=self.endpoint, token=_token())
        with _translated(self.id, requested, api.endpoint):
            commit = str(api.model_info(self.id, revision=requested).sha)
            if not COMMIT.fullmatch(commit) or (COMMIT.fullmatch(requested) and commit != requested):
                raise PackError(f"{api.endpoint}: {self.id}: {requested} was resolved to {commit[:80]!r}")
            tree = api.list_repo_tree(self.id, recursive=True, revision=commit)
            entries = list(itertools.islice(tree, MAX_FILES + 1))
            files = tuple(_remote_file(entry) for entry in entries if isinstance(entry, RepoFile))
        client = f"huggingface_hub {huggingface_hub.__version__}"
        return Listing(revision=commit, files=files, endpoint=api.endpoint, client=client)

    def address(self, listing: Listing, file: RemoteFile) -> str:
        """Where one file of the pinned commit can be read."""
        from huggingface_hub import hf_hub_url

        return str(hf_hub_url(self.id, file.path, revision=listing.revision, endpoint=listing.endpoint))

    def credentials(self) -> dict[str, str]:
        """Headers for the hub itself, and for nobody it redirects to."""
        token = _token()
        return {"Authorization": f"Bearer {token}"} if token else {}

    def download(self, listing: Listing, file: RemoteFile, folder: Path, *, force: bool) -> str | None:
        """Download one file of the pinned commit, behind the bytes that are there already.

        The library's own download starts a file anew in each process (seen in 2.4), which over a home network
        means never finishing a large one; so its parts are used on a file of ours.
        """
        from huggingface_hub.file_download import get_hf_file_metadata, hf_hub_url, http_get
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()
        target = folder / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        with _translated(self.id, listing.revision, str(listing.endpoint)), target.open("ab") as out:
            if force or out.tell() > file.size:
                out.truncate(0)
            url = hf_hub_url(self.id, file.path, revision=listing.revision, endpoint=listing.endpoint)
            found = get_hf_file_metadata(url, token=_token(), endpoint=listing.endpoint)
            # A redirect may lead to another company's storage, where the token has no business.
            same_host = urlsplit(found.location).netloc == urlsplit(url).netloc
            headers = build_hf_headers(token=_token() if same_host else False)
            http_get(
                found.location,
                out,
                resume_size=out.seek(0, os.SEEK_END),
                headers={**headers, "Accept-Encoding": "identity"},
                expected_size=file.size,
            )
        return None


def _bounded_client() -> Any:
    """The library's HTTP client with a deadline for every silence; its own waits for ever."""
    from huggingface_hub.utils._http import default_client_factory

    client = default_client_factory()
    client.timeout = SILENCE_S
    return client


def _remote_file(entry: Any) -> RemoteFile:
    in_lfs = entry.lfs is not None
    return RemoteFile(
        path=str(entry.path),
        size=int(entry.size),
        sha256=str(entry.lfs.sha256) if in_lfs else None,
        git_sha1=None if in_lfs else str(entry.blob_id),
    )


def _token() -> str | bool:
    """The host's token, or False, which keeps the library from looking for one elsewhere."""
    return os.environ.get("HF_TOKEN") or False


@contextlib.contextmanager
def _translated(model_id: str, revision: str, endpoint: str) -> Iterator[None]:
    """The library's failures as ours. Its texts are not passed on: they may quote signed addresses."""
    from huggingface_hub import errors

    unreachable = (
        errors.HTTPError,  # type: ignore[attr-defined]  # the base of whichever HTTP client the release uses
        errors.LocalEntryNotFoundError,
        errors.FileMetadataError,
        ConnectionError,
    )
    where = f"{endpoint}: {model_id} at {revision}"
    try:
        yield
    except errors.GatedRepoError:
        raise AuthError(
            f"{where}: is gated; accept its terms there and set HF_TOKEN where this runs"
        ) from None
    except errors.HfHubHTTPError as error:
        raise _refused(error.response.status_code, where) from None
    except unreachable as error:
        kind = type(error).__name__
        raise UnreachableError(f"{where}: cannot be reached ({kind}); check the network") from None
    except OSError as error:
        if error.errno is not None:  # the disk's, not the library's
            raise
        raise TransferError(f"{where}: the body was not as long as the hub said") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TransferError(f"{where}: not a hub's answer ({type(error).__name__})") from None


def _refused(status: int, where: str) -> AuthError | UsageError | UnreachableError:
    if status in (401, 403):
        return AuthError(
            f"{where}: refused ({status}): private, or no such model; set HF_TOKEN where this runs"
        )
    if status == 404:
        return UsageError(f"{where}: no such model, revision or file there")
    return UnreachableError(f"{where}: the hub answered {status}; try again later")
