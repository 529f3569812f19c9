"""An accuracy record for people, in Markdown, from the record alone."""

from __future__ import annotations

from lean.accuracy.compare import PromptAccuracy, Summary
from lean.accuracy.record import AccuracyRecord
from lean.markdown import table

_COLUMNS = (
    *("prompt", "tokens", "logit error", "root mean square", "KL, nats", "agreement", "first divergence"),
    "margin, nats",
)
_ABOUT = (
    "Places are those along the bf16 pack's greedy text. An error is relative to the largest logit, or to\n"
    "their root mean square; logits less their mean. A margin is how much the bf16 pack preferred its own\n"
    "token where the two part.\n"
)


def accuracy_page(record: AccuracyRecord) -> str:
    """The page of one record."""
    pack, reference = record.pack, record.reference
    code = f"{record.release.git_sha[:7]}{', dirty' if record.release.dirty else ''}"
    head = (
        f"# Accuracy of {pack.encoding} against bf16, {record.started_utc}\n\n"
        f"Host {record.host}, code {code}; {record.label}: {'; '.join(record.label_reasons)}.\n"
        f"Pack {pack.contract}, LOCK {pack.lock[:8]}, {pack.weights} weights, by the {pack.runner['name']} "
        f"runner in {pack.runner['compute_dtype']};\n"
        f"against {reference.contract}, LOCK {reference.lock[:8]}. "
        f"Text {record.text.name}, {record.text.tokens} tokens, sha256 {record.text.sha256[:16]}.\n"
    )
    prompts = [[str(index), *_cells(prompt)] for index, prompt in enumerate(record.prompts)]
    measured = table(("", "measured"), _rows(record))
    return f"{head}\n{measured}\n\n{_ABOUT}\n{table(_COLUMNS, prompts)}\n"


def _rows(record: AccuracyRecord) -> list[list[str]]:
    found, loss = record.summary, record.loss
    share = record.pack.weight_bytes / record.reference.weight_bytes
    rows = [
        ["weights", f"{record.pack.weight_bytes:,} bytes, {share:.3f} of bf16's"],
        ["logit error", f"median {found.logit_error_median:.4f}, most {found.logit_error_most:.4f}"],
        ["logit error, root mean square", f"median {found.logit_error_rms_median:.4f}"],
        ["KL divergence", f"{found.kl_nats:.5f} nats a token"],
        ["greedy agreement", f"{found.agreement:.1%} of {sum(p.tokens for p in record.prompts)} places"],
        ["prompts that diverge", f"{found.diverged} of {len(record.prompts)}{_divergences(found)}"],
    ]
    if loss is not None:
        nats = f"{loss.nats:.4f} nats a token, bf16 {loss.reference_nats:.4f}, ratio {loss.ratio:.4f}"
        rows.append([f"held-out loss, {loss.tokens} tokens", nats])
    return rows


def _divergences(found: Summary) -> str:
    if found.margin_nats_median is None:
        return ""
    margins = f"{found.margin_nats_median:.3f} nats, at most {found.margin_nats_most:.3f}"
    return f"; in the median at token {found.divergence_median:g}, with a margin of {margins}"


def _cells(prompt: PromptAccuracy) -> list[str]:
    parted = prompt.divergence
    return [
        str(prompt.tokens),
        f"{prompt.logit_error:.4f}",
        f"{prompt.logit_error_rms:.4f}",
        f"{prompt.kl_nats:.5f}",
        f"{prompt.agreement:.1%}",
        "none" if parted is None else str(parted.position),
        "" if parted is None else f"{parted.margin_nats:.3f}",
    ]
