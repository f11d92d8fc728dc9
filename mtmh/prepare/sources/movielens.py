"""MovieLens as GroupLens ships it: ``ratings.csv`` and ``movies.csv``.

A rating of at least ``min_rating`` is an engagement, with the rating as its value; lower ones are counted as
``low_rating``. Text is the title without its year, which becomes the float feature ``year``. Genres are labels for
evaluation only: the first listed one is shown as the coarse topic, the whole set as the fine one; two films match in
the coarse topic if they share any genre. User tags are left out: they are written at any time, also after the cut.

Users rate in bursts, so a cut in time leaves few users with both a past and a future: cut per user.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mtmh.config import Settings
from mtmh.prepare.sources.base import SourceContext, SourceTables
from mtmh.prepare.sql import reasons
from mtmh.prepare.table_file import table_file

NO_GENRES = "(no genres listed)"


class MovielensOptions(Settings):
    """``data.options`` of the source ``movielens``."""

    min_rating: Annotated[float, Field(ge=0.0, le=5.0)] = 3.5


def movielens_tables(context: SourceContext) -> SourceTables:
    """Reads ``ratings.csv`` and ``movies.csv`` in ``data.input``.

    Raises:
        ValueError: a file is missing, broken, or lacks a column.
    """
    options = context.options(MovielensOptions)
    ratings = table_file(
        context.connection,
        [context.file("ratings.csv", "ratings.csv.gz")],
        types={"userId": "BIGINT", "movieId": "BIGINT", "rating": "DOUBLE", "timestamp": "BIGINT"},
    )
    movies = table_file(
        context.connection,
        [context.file("movies.csv", "movies.csv.gz")],
        types={"movieId": "BIGINT", "title": "VARCHAR", "genres": "VARCHAR"},
    )
    events = f"""
        SELECT userId AS user_id, movieId AS item_id, timestamp, rating::FLOAT AS value,
            {reasons(("rating IS NULL", "no_rating"), (f"rating < {options.min_rating}", "low_rating"))} AS drop_reason
        FROM {ratings.sql}"""
    items = rf"""
        SELECT movieId AS item_id,
            nullif(trim(regexp_replace(title, '\(\d{{4}}\)\s*$', '')), '') AS text, NULL::VARCHAR AS image,
            string_split(labels, '|')[1] AS topic_l1,
            array_to_string(list_sort(string_split(labels, '|')), '|') AS topic_l2,
            NULL::FLOAT[] AS content_embedding,
            try_cast(regexp_extract(title, '\((\d{{4}})\)\s*$', 1) AS DOUBLE) AS year,
            NULL::VARCHAR AS drop_reason
        FROM (SELECT *, nullif(nullif(genres, '{NO_GENRES}'), '') AS labels FROM {movies.sql})"""
    return SourceTables(
        events,
        items,
        float_features=("year",),
        tables=(ratings, movies),
        events_by_file=ratings,
        items_by_file=movies,
        event_columns=("value",),
        topic_separator="|",
    )
