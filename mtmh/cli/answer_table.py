"""The answers of a retriever as a table for the terminal."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from mtmh.retrieval.answers import SideBySide
from mtmh.retrieval.catalogue import ItemDescription


def retrieval_table(side_by_side: SideBySide) -> Table:
    """The answers of every head and of the merge as columns of one table for the terminal."""
    shown = side_by_side.descriptions
    trigger = shown[side_by_side.trigger]
    title = escape(f"Trigger {side_by_side.trigger}: {_describe(trigger)}")
    table = Table(title=title, title_justify="left", show_lines=False)
    table.add_column("#", justify="right", style="dim")
    for head in side_by_side.heads:
        table.add_column(f"{head} head")
    many = len(side_by_side.heads) > 1
    if many:
        table.add_column(f"merged, alpha = {side_by_side.alpha:g}")
    columns = [*side_by_side.heads.values(), *([side_by_side.merged] if many else [])]
    for place in range(max(map(len, columns), default=0)):
        cells = []
        for column, answers in enumerate(columns):
            if place >= len(answers):
                cells.append("")
                continue
            answer = answers[place]
            same = shown[answer.item].topic_l2 == trigger.topic_l2 != ""
            brought = f" [cyan]{answer.head[:1].upper()}[/cyan]" if column == len(side_by_side.heads) else ""
            text = escape(f"{answer.item} {_describe(shown[answer.item])}")
            cells.append(
                f"[dim]{_number(answer.similarity)}[/dim]{brought} {'[green]* ' + text + '[/green]' if same else text}"
            )
        table.add_row(str(place + 1), *cells)
    initials = ", ".join(f"{head[:1].upper()} = {head} head" for head in side_by_side.heads) if many else ""
    table.caption = "similarity under the head that brought it; *: the trigger's own fine topic" + (
        f"; {initials}" if initials else ""
    )
    return table


def _number(similarity: float | None) -> str:
    return "" if similarity is None else f"{similarity:.2f}"


def _describe(item: ItemDescription) -> str:
    text = item.text if len(item.text) <= 40 else item.text[:39] + "…"
    topics = " / ".join(dict.fromkeys(filter(None, (item.topic_l1, item.topic_l2))))
    return f"{text} ({topics})" if topics else text
