"""Whether a compiler said no: one that died of a signal, or ran too long, said nothing of the kernel."""

from __future__ import annotations

from kernels.aot import AotError, StageFailed


def is_refusal(error: AotError) -> bool:
    """Whether a failed build is the tools' answer: the front end's words, or an exit code from 0 on."""
    cause = error.__cause__
    return isinstance(cause, StageFailed) and _answered(cause)


def _answered(cause: StageFailed) -> bool:
    return cause.stage == "bytecode" or (cause.exit_code is not None and cause.exit_code >= 0)
