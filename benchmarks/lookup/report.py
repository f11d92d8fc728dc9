"""One self-contained HTML page of a run: curves with the limits drawn, bars, tables, how it was measured."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterable
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.lookup.cases import FORWARD, SHARDINGS, TRAIN

Row = dict[str, Any]

LABELS = {"embedding_bag": "nn.EmbeddingBag", "tbe": "FBGEMM TBE", "ebc": "TorchRec EBC, unsharded"} | {
    f"sharded:{sharding}": f"TorchRec EBC, {sharding.replace('_', '-')}" for sharding in SHARDINGS
}
# Colours that stay apart for the colour-blind (Okabe and Ito).
COLOURS = {"embedding_bag": "#D55E00", "tbe": "#0072B2", "ebc": "#009E73"}
LIMIT, COPY = "#444444", "#999999"
CURVES = {
    "rows": "rows of the table",
    "width": "width of a row (columns)",
    "pooling": "pooling (rows in a bag)",
    "skew": "Zipf skew of the indices",
    "batch": "batch (bags in a step)",
    "threads": "threads of the process",
    "threads, int8": "threads of the process, int8 tables",
}
BARS = {"dtype": "type of the stored rows", "option": "options on the base case", "sharding": "sharding"}
LINEAR = {"skew", "threads", "threads, int8"}

STYLE = """
:root { color-scheme: light }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1280px; margin: 2rem auto; padding: 0 1rem }
body { color: #1a1a1a; background: #fff } h1 { font-size: 1.7rem; margin-bottom: .2rem }
h2 { margin-top: 2.6rem; border-bottom: 1px solid #ddd; padding-bottom: .2rem }
code { background: #f3f3f3; padding: .1em .3em; border-radius: 3px } svg { max-width: 100%; height: auto }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: 13px; margin: .6rem 0 1.2rem }
th, td { padding: 3px 9px; text-align: right; border-bottom: 1px solid #e6e6e6; white-space: nowrap }
th { background: #f6f6f6; vertical-align: bottom } .text { text-align: left } tr.turn td { border-top: 2px solid #bbb }
.machine td:first-child { text-align: left; color: #555 } .machine td { text-align: left } .bad { color: #b00020 }
"""

METHOD = """
<p>A <b>lookup</b> is one row read for one bag: a forward step makes <code>tables × batch × pooling</code> of them.
<b>Bytes</b> are those of rows: forward counts <code>lookups × row bytes</code>; forward+backward three times that,
since backward reads and writes each looked-up row once more. A row looked up twice counts twice. Row bytes are
<code>width × 4</code> (fp32), <code>width × 2</code> (fp16), <code>width + 4</code> rounded up to 16 (int8 with scale
and shift). Outputs, gradients, indices and optimizer state are not counted.</p>
<p><b>Limit</b>: random gather of rows of the same width from a table of the same size at the same indices (same skew,
same thread count; the cores or GPUs of all ranks for sharded cases). Two gathers are timed: <code>index_select</code>
into a buffer that stays in the cache (on CUDA: into memory, counted read + written) and <code>embedding_bag</code> over
bags of 320 rows; the fastest sample of both stands. <b>Copy</b>: <code>Tensor.copy_</code> of a large buffer, read +
written, the fastest sample. A figure can pass the limit of the gather by writing rows back while they are still in the
cache, and by noise.</p>
<p>Each figure is the median of repeated samples of one or several calls each, after warm-up; bars on the curves and the
columns q1 and q3 are quartiles. Every call takes another of 4 to 32 index sets drawn beforehand, enough to read at
least four last-level caches' worth of rows where 32 sets can; tables hold random values, never zeros. CUDA is timed
with events between synchronisations. Sharded samples are those of the slowest rank. <b>Cores busy</b> is the CPU time
of the process (rank 0) over wall time: how many cores a kernel really uses.</p>
<p>Kernels train as their users train them: FBGEMM and sharded TorchRec with the row-wise Adagrad fused into backward;
<code>nn.EmbeddingBag</code> with a sparse gradient and a step of SGD (Adagrad where said); unsharded TorchRec with the
dense gradient of the whole table and SGD; data-parallel TorchRec with the all-reduced dense gradient and SGD. int8
serves inference only: forward alone.</p>
"""


def render(result: dict[str, Any]) -> str:
    """The page of a run, whole or not, from `benchmarks.lookup.progress.Progress.result`."""
    rows: list[Row] = result["rows"]
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Embedding lookups</title>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<style>{STYLE}</style></head><body>",
        "<h1>Embedding lookups beside the limits of the machine</h1>",
        f"<p>{html.escape(result['written'])} · <code>{html.escape(result['command'])}</code></p>",
        _incomplete(result["missing"]),
        _machine(result),
        "<h2>How it is measured</h2>",
        METHOD,
    ]
    for sweep in [*CURVES, *BARS]:
        of_sweep = [row for row in rows if row["sweep"] == sweep]
        if of_sweep:
            draw = _curves if sweep in CURVES else _bars
            parts += [f"<h2>{(CURVES | BARS)[sweep].capitalize()}</h2>", _constants(of_sweep)]
            values = list(dict.fromkeys(row["x"] for row in of_sweep))
            of_sweep.sort(key=lambda row: (values.index(row["x"]), row["mode"] != FORWARD))
            parts += [draw(sweep, of_sweep, result["copy"]["best"]), _table(of_sweep)]
    parts += [_left_out("Skipped", result["skipped"], "reason"), _left_out("Failed", result["failed"], "error")]
    return "\n".join([*parts, "</body></html>\n"])


def _incomplete(missing: dict[str, int]) -> str:
    if not missing:
        return ""
    sweeps = ", ".join(f"{html.escape(sweep)} {count}" for sweep, count in missing.items())
    return f"<p class='bad'><b>Incomplete</b>: {sum(missing.values())} figures are missing ({sweeps}).</p>"


def _machine(result: dict[str, Any]) -> str:
    copy = result["copy"]
    facts = dict(result["machine"]) | {
        "copy bandwidth": f"{copy['best'] / 1e9:.1f} GB/s ({copy['method']})",
        "minutes of measuring": f"{result['seconds'] / 60:.1f}",
        "cores others kept busy": f"{result['cores_others_kept_busy']:.2f}",
    }
    lines = (
        f"<tr><td>{html.escape(name.replace('_', ' '))}</td><td>{html.escape(str(value))}</td></tr>"
        for name, value in facts.items()
    )
    return f"<table class='machine'>{''.join(lines)}</table>"


def _constants(rows: list[Row]) -> str:
    """The parameters that all rows of a sweep share."""
    first = rows[0]["case"]
    same = {name: value for name, value in first.items() if all(row["case"][name] == value for row in rows)}
    return "<p>" + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in same.items()) + "</p>"


def _colour(kernel: str) -> str:
    return COLOURS.get(kernel, "#CC79A7")


def _panels(rows: list[Row], height: float) -> tuple[Figure, list[tuple[Axes, str]]]:
    modes = [mode for mode in (FORWARD, TRAIN) if any(row["mode"] == mode for row in rows)]
    figure = Figure(figsize=(5.6 * len(modes), height), layout="constrained")
    axes = figure.subplots(1, len(modes), squeeze=False)[0]
    return figure, list(zip(axes, modes, strict=True))


def _curves(sweep: str, rows: list[Row], copy: float) -> str:
    """Bytes per second against the swept value: a curve a kernel, the limits dashed."""
    figure, panels = _panels(rows, 4.2)
    for axes, mode in panels:
        of_mode = [row for row in rows if row["mode"] == mode]
        for kernel in dict.fromkeys(row["kernel"] for row in of_mode):
            points = sorted((row for row in of_mode if row["kernel"] == kernel), key=lambda row: float(row["x"]))
            middle = [row["bytes_per_s"] / 1e9 for row in points]
            below = [(row["bytes_per_s"] - row["bytes_per_s_q1"]) / 1e9 for row in points]
            above = [(row["bytes_per_s_q3"] - row["bytes_per_s"]) / 1e9 for row in points]
            axes.errorbar(
                [row["x"] for row in points], middle, yerr=[below, above], label=LABELS[kernel],
                color=_colour(kernel), marker="o", markersize=4, capsize=3, linewidth=1.6,
            )  # fmt: skip
        limit = sorted({float(row["x"]): row["gather"]["best"] / 1e9 for row in of_mode}.items())
        axes.plot(*zip(*limit, strict=True), color=LIMIT, linestyle="--", marker=".", label="limit: random gather")
        axes.axhline(copy / 1e9, color=COPY, linestyle=":", label="copy bandwidth")
        if sweep not in LINEAR:
            axes.set_xscale("log", base=2 if sweep in {"width", "batch"} else 10)
        values = sorted({float(row["x"]) for row in of_mode})
        axes.set_xticks(
            values, [f"{value:g}" if value < 1e5 else f"{value:.0e}".replace("e+0", "e") for value in values]
        )
        axes.minorticks_off()
        axes.set(title=mode, xlabel=CURVES[sweep], ylabel="GB/s of rows")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
    panels[0][0].legend(fontsize=8)
    return _svg(figure, sweep)


def _bars(sweep: str, rows: list[Row], _: float) -> str:
    """Bytes per second a bar each, the gather limit of each as a mark."""
    count = max(sum(row["mode"] == mode for row in rows) for mode in (FORWARD, TRAIN))
    figure, panels = _panels(rows, 1.3 + 0.3 * count)
    for axes, mode in panels:
        of_mode = [row for row in rows if row["mode"] == mode][::-1]
        places = range(len(of_mode))
        rates = [row["bytes_per_s"] / 1e9 for row in of_mode]
        spread = [
            [(row["bytes_per_s"] - row["bytes_per_s_q1"]) / 1e9 for row in of_mode],
            [(row["bytes_per_s_q3"] - row["bytes_per_s"]) / 1e9 for row in of_mode],
        ]
        axes.barh(places, rates, xerr=spread, color=[_colour(row["kernel"]) for row in of_mode], height=0.65, capsize=2)
        limits = [row["gather"]["best"] / 1e9 for row in of_mode]
        axes.plot(
            limits, places, linestyle="none", marker="|", markersize=14, color=LIMIT, label="limit: random gather"
        )
        names = [str(row["x"]) if sweep == "sharding" else f"{row['x']}: {LABELS[row['kernel']]}" for row in of_mode]
        axes.set_yticks(places, names, fontsize=8)
        axes.set(title=mode, xlabel="GB/s of rows", xlim=(0, None))
        axes.set_axisbelow(True)
        axes.grid(axis="x", alpha=0.25)
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.09 - 0.5 / max(count, 3)), frameon=False)
    return _svg(figure, sweep)


def _svg(figure: Figure, salt: str) -> str:
    """The figure as an ``svg`` element that refers to nothing outside the page."""
    buffer = io.StringIO()
    plain = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt, "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata=plain)
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    return re.sub(r"\s*<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)


def _table(rows: list[Row]) -> str:
    head = (
        "<tr><th class='text'>value</th><th class='text'>kernel</th><th class='text'>mode</th><th>M lookups/s</th>"
        "<th>GB/s</th><th>gather limit<br>GB/s</th><th>% of<br>gather</th><th>% of<br>copy</th><th>median<br>ms</th>"
        "<th>q1<br>ms</th><th>q3<br>ms</th><th>fastest<br>ms</th><th>samples</th><th>cores<br>busy</th></tr>"
    )
    lines, before = [], None
    for row in rows:
        timing = row["timing"]
        numbers = (
            f"{row['lookups_per_s'] / 1e6:.1f}",
            f"{row['bytes_per_s'] / 1e9:.2f}",
            f"{row['gather']['best'] / 1e9:.2f}",
            f"{row['percent_of_gather']:.0f}",
            f"{row['percent_of_copy']:.0f}",
            *(f"{timing[name] * 1e3:.3f}" for name in ("median", "q1", "q3", "fastest")),
            f"{timing['samples']} × {timing['calls']}",
            f"{timing['cores_busy']:.1f}",
        )
        names = (str(row["x"]), LABELS[row["kernel"]], row["mode"])
        cells = "".join(f"<td class='text'>{html.escape(name)}</td>" for name in names)
        cells += "".join(f"<td>{number}</td>" for number in numbers)
        turn = "" if row["x"] == before else " class='turn'"
        lines.append(f"<tr{turn}>{cells}</tr>")
        before = row["x"]
    return f"<div class='wide'><table>{head}{''.join(lines)}</table></div>"


def _left_out(title: str, entries: Iterable[Row], why: str) -> str:
    lines = [
        f"<li>{html.escape(str(entry['sweep']))} {html.escape(str(entry['x']))}, {LABELS[entry['kernel']]}, "
        f"{entry['mode']}: "
        f"<span class='{'bad' if why == 'error' else ''}'>{html.escape(str(entry[why]).strip())}</span></li>"
        for entry in entries
    ]
    return f"<h2>{title}</h2><ul>{''.join(lines)}</ul>" if lines else ""
