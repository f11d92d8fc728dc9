"""The outcome of prepare as a table for the terminal."""

from __future__ import annotations

from datetime import UTC, datetime

from rich.table import Table

from mtmh.artifacts import Artifact
from mtmh.data.schema import DatasetSummary

_YEAR_2000, _YEAR_2100 = 946_684_800, 4_102_444_800


def summary_table(artifact: Artifact) -> Table:
    """The facts of a dataset artifact, and every dropped row by its reason."""
    summary = DatasetSummary.model_validate(artifact.summary)
    table = Table(title=f"dataset {artifact.path} (source: {summary.source})", show_header=False, title_justify="left")
    table.add_column()
    table.add_column(justify="right")

    def section(**rows: int | float | str) -> None:
        for name, value in rows.items():
            text = f"{value:,}" if isinstance(value, int | float) else value
            table.add_row(name.replace("_", " "), text)
        table.add_section()

    section(
        events_read=summary.num_events_read,
        training_events=summary.num_train_events,
        test_events=summary.num_test_events,
    )
    section(
        items=summary.num_items,
        fresh_items=summary.num_fresh_items,
        users=summary.num_users,
        test_users=summary.num_test_users,
    )
    features = summary.features
    section(
        id_features=", ".join(f"{feature.name} ({feature.num_rows:,} rows)" for feature in features.id_features),
        float_features=", ".join(features.float_features) or "none",
        content_embedding=f"width {summary.content_embedding_dim}" if summary.content_embedding_dim else "none",
        topics="yes" if summary.has_topics else "no",
    )
    if summary.cutoff is not None:
        section(first_instant_of_the_test_period=_instant(summary.cutoff, is_date=summary.timestamp_is_date))
    for what, dropped in (("events", summary.dropped_events), ("items", summary.dropped_items)):
        for reason, rows in dropped.items():
            table.add_row(f"dropped {what}: {reason.replace('_', ' ')}", f"{rows:,}")
        table.add_section()
    return table


def _instant(cutoff: float, *, is_date: bool) -> str:
    """Of dates, and of seconds since 1970 as far as one can tell, the date and time; of an order the number."""
    if is_date or _YEAR_2000 <= cutoff < _YEAR_2100:
        return f"{datetime.fromtimestamp(cutoff, UTC):%Y-%m-%d %H:%M:%S} UTC"
    return f"{cutoff:.0f}"
