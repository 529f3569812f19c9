"""What every task shares: failures become exit codes, results go through one console."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Sequence
from typing import Any

from invoke import Exit, task

from lean.errors import Interrupted, LeanError, UsageError, error_document
from remote.console import Console

HELP = {
    "host": "a host of hosts.yaml or hosts.local.yaml; the default one when left out",
    "json": "the result as one JSON document on standard output, progress on standard error",
    "system": "another system: transformers, llama.cpp, vllm or sglang",
    "profile": "a profile of profiles/bench",
    "model": "a checkpoint on the host; the newest snapshot of the contract's model when left out",
    "bring": "a folder on the host with every package of it; else a host without internet is sent them",
    "threads": "of the CPU; the program's own choice when left out",
    "dry_run": "print host, command and bytes; touch no network",
}


def verb(
    several: bool = False, repeated: Sequence[str] = (), **help_texts: str
) -> Callable[[Callable[..., None]], Any]:
    """Make a function `(console, **flags)` an Invoke task; its docstring is the help.

    `repeated`: flags that may be given more than once; the function gets lists.
    `several`: nothing in it belongs to one host, so `--host a,b` runs it on both at once.
    The flag `json` is taken here: the function gets a `Console` that knows it. A `LeanError` ends the process
    with its exit code and one line on standard error; with `--json` also its document on standard output.
    """

    def make(function: Callable[..., None]) -> Any:
        @functools.wraps(function)
        def body(context: object, *args: Any, json: bool = False, **flags: Any) -> None:
            console = Console(as_json=json)
            try:
                if several and "," in (flags.get("host") or ""):
                    raise Exit(code=_on_several(console, function, flags))
                function(console, *args, **flags)
            except LeanError as error:
                raise _ended(error, console) from None
            except KeyboardInterrupt:
                raise _ended(Interrupted("interrupted"), console) from None

        body.__signature__ = _with_json(function)  # type: ignore[attr-defined]
        flags = body.__signature__.parameters  # type: ignore[attr-defined]
        texts = {name: text for name, text in HELP.items() if name in flags} | help_texts
        helps = {name.replace("_", "-"): text for name, text in texts.items()}
        return task(body, help=helps, iterable=list(repeated))

    return make


def whole_number(flag: str, given: int | str | None) -> int | None:
    """What a flag without a default was given: Invoke hands it on as text. Errors: `UsageError`."""
    try:
        return None if given is None else int(given)
    except ValueError:
        raise UsageError(f"{flag} {given!r}: expected a whole number") from None


def number(flag: str, given: str | None) -> float | None:
    """What a flag that takes a number was given. Errors: `UsageError`."""
    try:
        return None if given is None else float(given)
    except ValueError:
        raise UsageError(f"{flag} {given!r}: expected a number") from None


def _on_several(console: Console, function: Callable[..., None], flags: dict[str, Any]) -> int:
    from remote.tasks.several import hosts_of, run_on_several

    others = {name: value for name, value in flags.items() if name != "host"}
    return run_on_several(console, f"remote.{function.__name__}", hosts_of(flags["host"]), others)


def _with_json(function: Callable[..., None]) -> Any:
    signature = inspect.signature(function)
    flag = inspect.Parameter("json", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=False)
    return signature.replace(parameters=[*signature.parameters.values(), flag])


def _ended(error: LeanError, console: Console) -> Exit:
    if console.as_json and not console.answered:
        print(json.dumps(error_document(error)), flush=True)
    return exit_with(error)


def exit_with(error: LeanError) -> Exit:
    """For a failure whose document was the verb's result: the line and the code are all that is left."""
    return Exit(f"error: {error}", code=error.exit_code)
