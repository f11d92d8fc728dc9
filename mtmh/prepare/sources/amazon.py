"""Amazon reviews, 5-core, as ``interactions.csv`` (user, product, sequence) and ``products.csv``.

``sequence`` counts up within a user and is no clock, so only a cut per user makes sense. Text is title and brand; the
categories are labels for evaluation only.
"""

from __future__ import annotations

from mtmh.config import Settings
from mtmh.prepare.sources.base import SourceContext, SourceTables
from mtmh.prepare.table_file import table_file


class AmazonOptions(Settings):
    """``data.options`` of the source ``amazon``: none."""


def amazon_tables(context: SourceContext) -> SourceTables:
    """Reads ``interactions.csv`` and ``products.csv`` in ``data.input``.

    Raises:
        ValueError: a file is missing, broken, or lacks a column.
    """
    context.options(AmazonOptions)
    interactions = table_file(
        context.connection,
        [context.file("interactions.csv.gz", "interactions.csv")],
        types={"user_id": "VARCHAR", "product_id": "VARCHAR", "sequence": "BIGINT"},
    )
    text = ("product_id", "title", "brand", "category_l1", "category_l2")
    products = table_file(
        context.connection,
        [context.file("products.csv.gz", "products.csv")],
        types=dict.fromkeys(text, "VARCHAR"),
    )
    return SourceTables(
        events=f"""
        SELECT {interactions.id_column("user_id").sql} AS user_id,
            {interactions.id_column("product_id").sql} AS item_id, sequence AS timestamp, NULL::VARCHAR AS drop_reason
        FROM {interactions.sql}""",
        items=f"""
        SELECT {products.id_column("product_id").sql} AS item_id, nullif(concat_ws(' ', title, brand), '') AS text,
            NULL::VARCHAR AS image, {products.text_column("category_l1")} AS topic_l1,
            {products.text_column("category_l2")} AS topic_l2, NULL::FLOAT[] AS content_embedding,
            {products.text_column("brand")} AS brand, NULL::VARCHAR AS drop_reason
        FROM {products.sql}""",
        id_features=("brand",),
        has_clock=False,
        tables=(interactions, products),
        events_by_file=interactions,
        items_by_file=products,
    )
