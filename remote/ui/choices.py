"""What the page may ask for, and the verb that each request becomes.

Names come from lists that this machine knows: nothing else that a browser sends reaches an argv.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from lean.contracts import LOOPBACK, load_contract, load_hosts
from lean.contracts.catalog import names
from lean.contracts.systems import SYSTEMS
from lean.errors import UsageError
from remote.paths import REPOSITORY
from remote.ui.plans import PlanChoice, read_plans
from remote.ui.soak_progress import SoakProgress

OURS = "leanserve"
SLOTS = (1, 2, 4, 8)
PROMPT_CHARACTERS = 8000
TOKENS = (64, 128, 256, 512)

T = TypeVar("T", str, int)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostChoice:
    """A host of hosts.yaml as the page shows it. `embedded`: this machine, through its own SSH server."""

    name: str
    contract: str
    runner: str
    default: bool
    embedded: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """The lists that a request's names are taken from."""

    hosts: tuple[HostChoice, ...]
    profiles: tuple[str, ...]
    plans: tuple[PlanChoice, ...] = ()
    systems: tuple[str, ...] = SYSTEMS
    ours: str = OURS
    slots: tuple[int, ...] = SLOTS
    tokens: tuple[int, ...] = TOKENS

    def host(self, name: object) -> HostChoice:
        """The host of this name. Errors: `UsageError` listing the known ones."""
        for host in self.hosts:
            if host.name == name:
                return host
        known = ", ".join(host.name for host in self.hosts)
        raise UsageError(f"host: no host named {name!r} in hosts.yaml; known: {known}")

    def plan(self, name: object) -> PlanChoice:
        """The soak plan of this name. Errors: `UsageError` listing the known ones."""
        known = _one_of("plan", name, tuple(plan.name for plan in self.plans))
        return next(plan for plan in self.plans if plan.name == known)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One operation that was asked for: what it is called, and the words of its verb.

    `progress` hears the operation's lines; None for one that says nothing that a table could be made of.
    """

    kind: str
    title: str
    words: tuple[str, ...]
    host: str | None = None
    profile: str | None = None
    system: str | None = None
    plan: str | None = None
    progress: SoakProgress | None = None

    @property
    def command(self) -> str:
        """The same as a person types it."""
        return "invoke " + shlex.join(self.words)


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSource:
    """A service to stream from: ours, or a baseline, on a host."""

    host: str
    system: str

    @property
    def words(self) -> tuple[str, ...]:
        """The verb that carries it to a port of this machine."""
        system = () if self.system == OURS else ("--system", self.system)
        return ("remote.forward", "--host", self.host, *system)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What both columns are asked. `together`: at the same time, else one after the other."""

    left: StreamSource
    right: StreamSource
    text: str
    tokens: int
    together: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Commands:
    """How a verb is started: an argv before its words, in a folder."""

    prefix: tuple[str, ...] = (sys.executable, "-m", "remote.program")
    folder: Path = REPOSITORY

    def argv(self, words: Sequence[str]) -> list[str]:
        """The whole argv; the verb answers with one JSON document."""
        return [*self.prefix, words[0], "--json", *words[1:]]


def read_choices(root: Path = REPOSITORY) -> Choices:
    """The lists as the checkout has them now. Errors: `ContractError` of a bad file."""
    hosts = load_hosts(root)
    return Choices(
        hosts=tuple(
            HostChoice(
                name=name,
                contract=host.contract,
                runner="torch" if load_contract(host.contract, root).target == "cpu" else "cuda",
                default=name == hosts.default,
                embedded=name == LOOPBACK and host.hostname is None,
            )
            for name, host in hosts.hosts.items()
        ),
        profiles=names(root / "profiles" / "bench"),
        plans=read_plans(root),
    )


def order_from(document: Mapping[str, Any], choices: Choices) -> Order:
    """The order a browser's document describes. Errors: `UsageError` naming the field and what it may be."""
    kind = _one_of("kind", document.get("kind"), tuple(_NEEDS))
    unknown = set(document) - {"kind", *_NEEDS[kind]}
    if unknown:
        raise UsageError(f"{kind} takes no {', '.join(sorted(unknown))}")
    if kind in ("up", "down"):
        title = f"{'Start' if kind == 'up' else 'Stop'} the embedded host"
        return Order(kind=kind, title=title, words=(f"remote.{kind}",), host=LOOPBACK)
    host = choices.host(document.get("host"))
    if kind == "soak":
        return _soak(document, host.name, choices)
    found: dict[str, str] = {}
    if "profile" in _NEEDS[kind]:
        found["profile"] = _one_of("profile", document.get("profile"), choices.profiles)
    if "system" in _NEEDS[kind]:
        found["system"] = _one_of("system", document.get("system"), choices.systems)
    words = [f"remote.{kind}", "--host", host.name]
    for name in ("system", "profile"):
        words += [f"--{name}", found[name]] if name in found else []
    if kind == "serve":
        slots = _one_of("slots", document.get("slots", 1), choices.slots)
        words += ["--runner", host.runner, "--slots", str(slots)]
    title = _TITLES[kind].format(host=host.name, **found)
    return Order(
        kind=kind,
        title=title,
        words=tuple(words),
        host=host.name,
        profile=found.get("profile"),
        system=found.get("system"),
    )


def standing_from(document: Mapping[str, Any], choices: Choices) -> Order:
    """The order to ask how far a host's newest soak of a plan is. Errors: `UsageError`."""
    host, plan = choices.host(document.get("host")).name, choices.plan(document.get("plan"))
    return Order(
        kind="standing",
        title=f"Where is the soak {plan.name} on {host}?",
        words=("remote.soak", "--host", host, "--plan", plan.name, "--show"),
        host=host,
        plan=plan.name,
    )


def prompt_from(document: Mapping[str, Any], choices: Choices) -> Prompt:
    """What to stream side by side. Errors: `UsageError` naming the field and what it may be."""
    text = document.get("prompt")
    if not isinstance(text, str) or not text.strip() or len(text) > PROMPT_CHARACTERS:
        raise UsageError(f"prompt: expected 1 to {PROMPT_CHARACTERS} characters of text")
    together = document.get("together", True)
    if not isinstance(together, bool):
        raise UsageError("together: expected true or false")
    return Prompt(
        left=_source("left", document.get("left"), choices),
        right=_source("right", document.get("right"), choices),
        text=text,
        tokens=_one_of("tokens", document.get("tokens"), choices.tokens),
        together=together,
    )


def choices_document(choices: Choices) -> dict[str, Any]:
    """The lists as the page gets them."""
    return asdict(choices)


def _soak(document: Mapping[str, Any], host: str, choices: Choices) -> Order:
    plan, resume = choices.plan(document.get("plan")), document.get("resume", False)
    if not isinstance(resume, bool):
        raise UsageError("resume: expected true or false")
    return Order(
        kind="soak",
        title=f"{'Resume the soak' if resume else 'Soak'} {plan.name} on {host}",
        words=("remote.soak", "--host", host, "--plan", plan.name, *(("--resume",) if resume else ())),
        host=host,
        plan=plan.name,
        progress=SoakProgress.of(plan),
    )


def _source(side: str, given: object, choices: Choices) -> StreamSource:
    if not isinstance(given, Mapping):
        raise UsageError(f"{side}: expected a host and a system")
    host = choices.host(given.get("host")).name
    return StreamSource(host=host, system=_one_of("system", given.get("system"), (OURS, *choices.systems)))


def _one_of(name: str, given: object, known: tuple[T, ...]) -> T:
    for value in known:
        if type(given) is type(value) and given == value:
            return value
    raise UsageError(f"{name}: {given!r} is none of {', '.join(map(str, known))}")


_NEEDS: Mapping[str, tuple[str, ...]] = {
    "up": (),
    "down": (),
    "serve": ("host", "slots"),
    "stop": ("host",),
    "baseline-up": ("host", "system"),
    "baseline-down": ("host",),
    "bench": ("host", "profile"),
    "compare": ("host", "system", "profile"),
    "soak": ("host", "plan", "resume"),
}
_TITLES: Mapping[str, str] = {
    "serve": "Start the service on {host}",
    "stop": "Stop the service on {host}",
    "baseline-up": "Start {system} on {host}",
    "baseline-down": "Stop the baseline on {host}",
    "bench": "Measure {profile} on {host}",
    "compare": "Compare with {system}, {profile} on {host}",
}
