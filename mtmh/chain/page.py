"""The page of a chain: one HTML file that needs nothing else."""

from __future__ import annotations

from html import escape
from pathlib import Path

from mtmh.artifacts import write_atomically
from mtmh.chain.duration import duration
from mtmh.chain.record import PAGE, RECORD, ChainRecord, Outcome, StageRecord
from mtmh.pages.page import Tone, callout, cell, facts, note, page, row, section, table

_HEADLINES: dict[Outcome, str] = {
    "running": "Running",
    "published": "Published",
    "unchanged": "Nothing to publish",
    "stopped": "Stopped at a gate",
    "failed": "Failed",
    "cancelled": "Cancelled",
}
_GOOD: Tone = "good"
_BAD: Tone = "bad"
_QUIET: Tone = "quiet"
_TONES: dict[str, Tone] = {
    "published": _GOOD, "ran": _GOOD, "unchanged": _QUIET, "waiting": _QUIET, "running": _QUIET,
    "stopped": _BAD, "failed": _BAD, "cancelled": _BAD,
}  # fmt: skip


def save(record: ChainRecord, folder: Path) -> None:
    """Writes ``record.json`` and its page."""
    write_atomically(folder / RECORD, record.model_dump_json(indent=2))
    write_atomically(folder / PAGE, page_of(record))


def page_of(record: ChainRecord) -> str:
    """The page, whatever has happened so far; it loads itself again while the chain runs."""
    stages = table(
        ["stage", "result", "took", "why it ran", "where"], [_stage(line, record) for line in record.stages], "stacked"
    )
    return page(
        f"Chain of {record.recipe}",
        callout(_HEADLINES[record.outcome], [record.message or _what_runs(record)], _TONES[record.outcome]),
        facts(_facts(record)),
        section("Stages", stages),
        section("Gates", _gates(record)),
        *(
            section(f"Last lines of {line.stage}", f"<pre>{escape(line.tail)}</pre>")
            for line in record.stages
            if line.tail
        ),
        refresh=3 if record.outcome == "running" else None,
    )


def _what_runs(record: ChainRecord) -> str:
    return ", ".join(line.stage for line in record.stages if line.result == "running") or "starting"


def _facts(record: ChainRecord) -> dict[str, str]:
    results = [line.result for line in record.stages]
    shown = {
        "took": duration(record.seconds),
        "stages ran": str(results.count("ran")),
        "unchanged": str(results.count("unchanged")),
        "index version": record.version or "–",
        "scheduler": record.scheduler,
        "started": record.started_at.replace("T", " ").replace("+00:00", " UTC"),
        "mtmh": record.mtmh_version,
    }
    if record.overrides:
        shown["settings changed"] = ", ".join(record.overrides)
    if record.continued_from:
        shown["continued from"] = record.continued_from
    return shown


def _stage(line: StageRecord, record: ChainRecord) -> str:
    shown = "not reached" if line.result == "waiting" and record.outcome != "running" else line.result
    longest = max((other.seconds for other in record.stages), default=0.0)
    share = line.seconds / longest if longest else 0.0
    bar = f'<i class="bar" style="width:{100 * share:.1f}%"></i>' if line.job and share else ""
    where = [("artifact", line.output), ("job", line.job.handle if line.job else ""), ("logs", line.logs)]
    places = "".join(f"<div><span>{name}</span> <code>{escape(place)}</code></div>" for name, place in where if place)
    return row([
        cell(line.stage),
        cell(shown, _TONES[line.result]),
        f"<td>{duration(line.seconds) if line.job else ''}{bar}</td>",
        f"<td>{'<br>'.join(map(escape, line.reasons))}</td>",
        f"<td>{places}</td>",
    ])  # fmt: skip


def _gates(record: ChainRecord) -> str:
    if not record.gates:
        return note("None was reached.")
    rows = [
        row([
            cell(gate.gate),
            cell("passed" if gate.passed else "missed", _GOOD if gate.passed else _BAD),
            f"<td>{'<br>'.join(map(escape, gate.figures))}</td>",
        ])
        for gate in record.gates
    ]  # fmt: skip
    return table(["gate", "result", "figures"], rows, "stacked")
