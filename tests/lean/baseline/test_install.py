"""A system's own environment: made whole or not at all, kept, and made anew for other pins."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import sys
import tarfile
from pathlib import Path

import pytest

from lean.baseline import install as installing
from lean.baseline.install import MARK, environment_of, install, read_installed
from lean.baseline.systems import SYSTEMS, Launch, Source, System, command, system_named
from lean.contracts.systems import SYSTEMS as NAMES
from lean.errors import IntegrityError, PreflightError, UsageError

BARE = System(
    name="transformers",
    package="pip",
    requirements=("pip==0.0.0",),
    dialect="transformers",
    needs_gpu=False,
    as_run="nothing but pip",
)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Environments that are folders with a link to this Python; what else was run, in order."""
    ran: list[list[str]] = []

    def run(argv: list[str], what: str, path: str | None = None) -> None:
        ran.append(argv)
        if argv[1:3] == ["-m", "venv"]:
            (Path(argv[3]) / "bin").mkdir(parents=True)
            (Path(argv[3]) / "bin" / "python").symlink_to(sys.executable)

    monkeypatch.setattr(installing, "_run", run)
    return ran


def test_an_environment_is_made_once_and_found_again(tmp_path: Path, quick: list[list[str]]) -> None:
    first = install(BARE, tmp_path, lambda line: None)
    assert first.built and first.version == "0.0.0" and any(p.startswith("pip ") for p in first.packages)
    assert [argv[2] for argv in quick] == ["venv", "pip"] and quick[1][-2:] == ["--", "pip==0.0.0"]
    again = install(BARE, tmp_path, lambda line: None)
    assert not again.built and again.venv == first.venv and len(quick) == 2


def test_other_pins_make_another_environment_and_leave_the_first(
    tmp_path: Path, quick: list[list[str]]
) -> None:
    other = dataclasses.replace(BARE, requirements=("pip==0.0.1",))
    assert environment_of(BARE, tmp_path) != environment_of(other, tmp_path)
    install(BARE, tmp_path, lambda line: None)
    install(other, tmp_path, lambda line: None)
    assert read_installed(BARE, environment_of(BARE, tmp_path)) is not None


def test_a_half_made_environment_is_made_anew_and_a_failed_one_leaves_nothing(
    tmp_path: Path, quick: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    left = environment_of(BARE, tmp_path)
    left.mkdir()
    (left / "stale").touch()
    assert install(BARE, tmp_path, lambda line: None).built and not (left / "stale").exists()
    (left / MARK).unlink()

    def fail(argv: list[str], what: str, path: str | None = None) -> None:
        raise PreflightError(f"{what} failed")

    monkeypatch.setattr(installing, "_run", fail)
    with pytest.raises(PreflightError, match="making transformers's environment failed"):
        install(BARE, tmp_path, lambda line: None)
    assert list(tmp_path.iterdir()) == []


def test_without_internet_everything_comes_from_the_folder_that_was_brought(
    tmp_path: Path, quick: list[list[str]]
) -> None:
    install(BARE, tmp_path / "venvs", lambda line: None, bring=tmp_path / "brought")
    at = quick[1].index("--no-index")
    assert quick[1][at + 1 : at + 3] == ["--find-links", str(tmp_path / "brought")]


def archive(folder: Path) -> tuple[Path, str]:
    """A source archive with one file, and its hash."""
    file = folder / "source-1.tar.gz"
    with tarfile.open(file, "w:gz") as out:
        entry = tarfile.TarInfo("source-1/CMakeLists.txt")
        out.addfile(entry, io.BytesIO(b""))
    return file, hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_source_archive_that_is_not_the_pinned_one_is_never_unpacked(
    tmp_path: Path, quick: list[list[str]]
) -> None:
    file, _ = archive(tmp_path)
    source = Source(url=file.as_uri(), sha256="00" * 32, folder="source-1")
    system = dataclasses.replace(BARE, name="llama.cpp", source=source)
    with pytest.raises(IntegrityError, match="pinned is 0000"):
        install(system, tmp_path / "venvs", lambda line: None)
    assert not any("cmake" in argv[0] for argv in quick) and list((tmp_path / "venvs").iterdir()) == []


def test_a_source_archive_that_cannot_be_had_is_named(tmp_path: Path, quick: list[list[str]]) -> None:
    source = Source(url=(tmp_path / "none.tar.gz").as_uri(), sha256="00" * 32, folder="source-1")
    system = dataclasses.replace(BARE, name="llama.cpp", source=source)
    with pytest.raises(PreflightError, match=r"none\.tar\.gz cannot be had"):
        install(system, tmp_path / "venvs", lambda line: None)


def test_sources_are_built_by_the_environment_s_own_cmake_and_the_server_is_kept(
    tmp_path: Path, quick: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, sha256 = archive(tmp_path)
    run = installing._run

    def build(argv: list[str], what: str, path: str | None = None) -> None:
        run(argv, what, path)
        if "--build" in argv:
            server = Path(argv[argv.index("--build") + 1]) / "bin" / "llama-server"
            server.parent.mkdir(parents=True)
            server.write_text("built")

    monkeypatch.setattr(installing, "_run", build)
    source = Source(url=file.as_uri(), sha256=sha256, folder="source-1")
    done = install(
        dataclasses.replace(BARE, name="llama.cpp", source=source), tmp_path / "venvs", lambda line: None
    )
    assert (done.venv / "bin" / "llama-server").read_text() == "built" and done.version == "1"
    assert all(argv[0] == str(done.venv / "bin" / "cmake") for argv in quick[2:])


def test_every_system_listens_on_this_machine_alone_and_answers_from_no_cache() -> None:
    launch = Launch(
        venv=Path("/v"),
        model=Path("/m"),
        weights=Path("/w.gguf"),
        port=4321,
        slots=4,
        length=320,
        gpu=True,
        threads=None,
    )
    off = {
        "vllm": "--no-enable-prefix-caching",
        "sglang": "--disable-radix-cache",
        "llama.cpp": "--no-cache-prompt",
        "transformers": "--continuous-batching",
    }
    for name, system in SYSTEMS.items():
        argv = command(system, launch)
        assert argv[argv.index("--host") + 1] == "127.0.0.1" and argv[argv.index("--port") + 1] == "4321"
        assert off[name] in argv and not any("eager" in word for word in argv)
        assert all("==" in pin for pin in system.requirements) and system.version[0].isdigit()


def test_every_system_that_can_be_asked_for_can_be_run_and_the_other_way_round() -> None:
    assert set(SYSTEMS) == set(NAMES) and all(name == system.name for name, system in SYSTEMS.items())


def test_an_unknown_system_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(UsageError, match=r"no system 'tensorrt'; expected one of transformers, llama\.cpp"):
        system_named("tensorrt")
