"""The page of a chain: one HTML file that needs nothing else."""

from __future__ import annotations

from html import escape
from importlib import resources
from pathlib import Path
from string import Template

from mtmh.artifacts import write_atomically
from mtmh.chain.record import PAGE, RECORD, ChainRecord, Outcome, StageRecord

_HEADLINES: dict[Outcome, str] = {
    "running": "Running",
    "published": "Published",
    "unchanged": "Nothing to publish",
    "stopped": "Stopped at a gate",
    "failed": "Failed",
    "cancelled": "Cancelled",
}
_GOOD, _BAD, _QUIET = "good", "bad", "quiet"
_TONES = {
    "published": _GOOD, "ran": _GOOD, "unchanged": _QUIET, "waiting": _QUIET, "running": _QUIET,
    "stopped": _BAD, "failed": _BAD, "cancelled": _BAD,
}  # fmt: skip


def save(record: ChainRecord, folder: Path) -> None:
    """Writes ``record.json`` and its page."""
    write_atomically(folder / RECORD, record.model_dump_json(indent=2))
    write_atomically(folder / PAGE, page_of(record))


def page_of(record: ChainRecord) -> str:
    """The page, whatever has happened so far; it loads itself again while the chain runs."""
    template = Template((resources.files("mtmh.chain") / "page.html").read_text(encoding="utf-8"))
    return template.substitute(
        refresh='<meta http-equiv="refresh" content="3">' if record.outcome == "running" else "",
        title=escape(f"Chain of {record.recipe}"),
        tone=_TONES[record.outcome],
        headline=_HEADLINES[record.outcome],
        message=escape(record.message or _what_runs(record)),
        facts=_facts(record),
        stages="".join(_stage(line, record) for line in record.stages),
        gates=_gates(record),
        tails="".join(_tail(line) for line in record.stages if line.tail),
    )


def duration(seconds: float) -> str:
    """``8 s``, ``3 min 20 s`` or ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _what_runs(record: ChainRecord) -> str:
    return ", ".join(line.stage for line in record.stages if line.result == "running") or "starting"


def _facts(record: ChainRecord) -> str:
    results = [line.result for line in record.stages]
    facts = {
        "took": duration(record.seconds),
        "stages ran": str(results.count("ran")),
        "unchanged": str(results.count("unchanged")),
        "index version": record.version or "–",
        "scheduler": record.scheduler,
        "started": record.started_at.replace("T", " ").replace("+00:00", " UTC"),
        "mtmh": record.mtmh_version,
    }
    if record.overrides:
        facts["settings changed"] = ", ".join(record.overrides)
    if record.continued_from:
        facts["continued from"] = record.continued_from
    return "".join(f"<li><b>{escape(value)}</b><span>{escape(name)}</span></li>" for name, value in facts.items())


def _stage(line: StageRecord, record: ChainRecord) -> str:
    shown = "not reached" if line.result == "waiting" and record.outcome != "running" else line.result
    longest = max((other.seconds for other in record.stages), default=0.0)
    bar = f'<i style="width:{100 * line.seconds / longest:.1f}%"></i>' if line.seconds and longest else ""
    where = [("artifact", line.output), ("job", line.job.handle if line.job else ""), ("logs", line.logs)]
    places = "".join(f"<div><span>{name}</span> <code>{escape(place)}</code></div>" for name, place in where if place)
    return (
        f'<tr><td>{escape(line.stage)}</td><td class="{_TONES[line.result]}">{shown}</td>'
        f'<td class="time">{duration(line.seconds) if line.job else ""}{bar}</td>'
        f"<td>{'<br>'.join(map(escape, line.reasons))}</td><td>{places}</td></tr>"
    )


def _gates(record: ChainRecord) -> str:
    if not record.gates:
        return '<p class="quiet">None was reached.</p>'
    rows = "".join(
        f'<tr><td>{escape(gate.gate)}</td><td class="{_GOOD if gate.passed else _BAD}">'
        f"{'passed' if gate.passed else 'missed'}</td><td>{'<br>'.join(map(escape, gate.figures))}</td></tr>"
        for gate in record.gates
    )
    return f"<table><thead><tr><th>gate</th><th></th><th>figures</th></tr></thead><tbody>{rows}</tbody></table>"


def _tail(line: StageRecord) -> str:
    return f"<h2>Last lines of {escape(line.stage)}</h2><pre>{escape(line.tail)}</pre>"
