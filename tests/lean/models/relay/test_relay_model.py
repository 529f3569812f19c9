"""A hub's model through the hubs' real client libraries. Oracle: what a fetch from the same hub leaves."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from lean.models.fetch import fetch
from lean.relay.origin import Origin
from lean.relay.spool import version_id

MODEL = "acme/tiny"


class Side:
    """One hub, the relay of its model, and a fetch of the same."""

    def __init__(self, relay: Any, hub: Any, source: Any, folder: Path) -> None:
        self.hub, self.source = hub, source
        self._relay, self._folder = relay, folder
        self.kind = "hf" if "HuggingFace" in type(source()).__name__ else "modelscope"

    def relay(self, *more: str) -> Any:
        variable = {"hf": "HF_ENDPOINT", "modelscope": "MODELSCOPE_ENDPOINT"}[self.kind]
        self._relay.environment[variable] = self.hub.url
        take = ["take-model", "--models", str(self._folder / "host"), "--id", MODEL, *more]
        return self._relay.run(take, ["--source", self.kind, "--id", MODEL, *more])

    def fetched(self) -> Path:
        return Path(fetch(self.source(), MODEL, self._folder / "fetched").path)

    def stage_half_of(self, name: str) -> Path:
        """What a relay leaves on the host that was cut in the middle of this file."""
        source = self.source()
        listing = source.listing()
        url = source.address(listing, next(file for file in listing.files if file.path == name))
        data = self.hub.files[name]
        half = data[: len(data) // 2]
        staged = self._folder / "host" / "acme__tiny" / f".{listing.revision}.partial" / name
        staged.parent.mkdir(parents=True)
        staged.write_bytes(half)
        version = version_id(url, Origin().version(url))
        notes = [{"version": version}, [len(half), hashlib.sha256(half).hexdigest()]]
        staged.with_name(f"{name}.relay").write_text("\n".join(map(json.dumps, notes)) + "\n")
        return staged


@pytest.fixture
def side(relay: Any, any_hub: Any, tmp_path: Path) -> Side:
    return Side(relay, *any_hub, tmp_path)


def same_files(one: Path, other: Path) -> bool:
    names = {p.name for p in one.iterdir()}
    assert names == {p.name for p in other.iterdir()}
    return all((one / n).read_bytes() == (other / n).read_bytes() for n in names - {"fetch.json"})


def test_a_relayed_snapshot_is_what_a_fetch_would_have_left(side: Side) -> None:
    ended = side.relay()
    assert (ended.code, ended.host_code) == (0, 0), ended.stderr
    relayed, fetched = Path(ended.document["path"]), side.fetched()
    assert relayed.name == fetched.name and same_files(relayed, fetched)
    ours, theirs = (json.loads((p / "fetch.json").read_text()) for p in (relayed, fetched))
    for name in ("files", "source", "revision", "allow", "refused", "endpoint"):
        assert ours[name] == theirs[name]
    assert all(file["hub_verified"] for file in ours["files"])


def test_relaying_again_reads_nothing_but_the_listing(side: Side) -> None:
    side.relay()
    side.hub.sent.clear()
    again = side.relay()
    assert (again.code, again.document["downloaded"], side.hub.sent) == (0, 0, {})


def test_a_pattern_makes_a_metadata_preflight(side: Side) -> None:
    ended = side.relay("--allow", "*.json")
    assert ended.code == 0, ended.stderr
    held = {p.name for p in Path(ended.document["path"]).iterdir()}
    assert held == {"config.json", "tokenizer.json", "fetch.json"}


def test_bytes_that_do_not_have_the_hubs_hash_are_refused(side: Side) -> None:
    side.hub.stated["model-00001-of-00002.safetensors"] = "0" * 64
    ended = side.relay()
    assert ended.code == 8 and "the source says" in ended.document["error"]["message"]
    assert not list(Path(side.relay.__self__._folder).glob("host/*/*/fetch.json"))


@pytest.mark.security("a hub's token goes to the hub only, and into no output")
def test_the_token_goes_to_the_hub_and_not_to_its_storage(
    side: Side, storage_server: Any, relay: Any
) -> None:
    token = "hf_s3cretcanary"
    relay.environment.update({"HF_TOKEN": token, "MODELSCOPE_API_TOKEN": token})
    side.hub.storage = storage_server.url
    ended = side.relay()
    assert ended.code == 0, ended.stderr
    assert any("resolve" in path or "FilePath" in path for path in side.hub.authorised)
    assert storage_server.asked and not storage_server.authorised
    assert token not in ended.stderr + json.dumps(ended.document)


def test_an_unknown_model_is_said_plainly(side: Side, relay: Any) -> None:
    side.relay()
    ended = relay.run(
        ["take-model", "--models", str(relay.folder / "h"), "--id", "acme/none"],
        ["--source", side.kind, "--id", "acme/none"],
    )
    assert ended.code == 1 and "no such model" in ended.document["error"]["message"]


@pytest.mark.fault("one file with a wrong hash", "relay")
def test_a_bad_file_does_not_cost_another_ones_staged_bytes(side: Side) -> None:
    """The second shard is half staged when the first one arrives with a wrong hash, twice."""
    first, second = (f"model-0000{n}-of-00002.safetensors" for n in (1, 2))
    staged = side.stage_half_of(second)
    half = staged.read_bytes()
    side.hub.stated[first] = hashlib.sha256(side.hub.files[first]).hexdigest()
    good, side.hub.files[first] = side.hub.files[first], bytes(len(side.hub.files[first]))
    ended = side.relay()
    assert ended.code == 8 and "the source says" in ended.document["error"]["message"]
    assert staged.read_bytes() == half

    side.hub.files[first] = good
    side.hub.sent.clear()
    ended = side.relay()
    assert ended.code == 0, ended.stderr
    assert side.hub.sent[second].count(0) == 1, "more was read of what was staged than the look at a byte"
    assert same_files(Path(ended.document["path"]), side.fetched())
