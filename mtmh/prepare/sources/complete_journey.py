"""84.51° Complete Journey 2.0: grocery transactions and the product tree.

Department and product category are the coarse and the fine topic, labels for evaluation only. The third level,
``product_type``, is text, but without the labels' own words where it repeats them. ``group: type`` makes one item of
all products that share category, type and brand (the transactions are a sample of lines, so single products rarely
meet); such an item goes by its lowest product id.
"""

from __future__ import annotations

from typing import Literal

from mtmh.config import Settings
from mtmh.prepare.sources.base import SourceContext, SourceTables
from mtmh.prepare.sql import reasons
from mtmh.prepare.table_file import table_file


class CompleteJourneyOptions(Settings):
    """``data.options`` of the source ``complete-journey``."""

    group: Literal["product", "type"] = "product"


def complete_journey_tables(context: SourceContext) -> SourceTables:
    """Reads the transactions and ``products.csv`` in ``data.input``.

    Raises:
        ValueError: a file is missing, broken, or lacks a column.
    """
    options = context.options(CompleteJourneyOptions)
    names = ("transactions_sample.csv.gz", "transactions_sample.csv", "transactions.csv.gz", "transactions.csv")
    transactions = table_file(
        context.connection,
        [context.file(*names)],
        types={
            "household_id": "BIGINT",
            "product_id": "BIGINT",
            "quantity": "DOUBLE",
            "transaction_timestamp": "TIMESTAMP WITH TIME ZONE",  # without one: of UTC
        },
    )
    products = table_file(
        context.connection,
        [context.file("products.csv.gz", "products.csv")],
        types={
            "product_id": "BIGINT",
            "manufacturer_id": "BIGINT",
            "department": "VARCHAR",
            "brand": "VARCHAR",
            "product_category": "VARCHAR",
            "product_type": "VARCHAR",
            "package_size": "VARCHAR",
        },
    )
    key = "product_category, product_type, brand"
    item_id = f"min(product_id) OVER (PARTITION BY {key})" if options.group == "type" else "product_id"
    grouped = f"SELECT *, {item_id} AS item_id FROM {products.sql}"
    dropped = reasons(
        ("t.product_id IS NOT NULL AND p.product_id IS NULL", "unknown_item"),
        ("t.quantity IS NULL OR t.quantity <= 0", "no_quantity"),
    )
    events = f"""
        SELECT t.household_id AS user_id, p.item_id, floor(epoch(t.transaction_timestamp))::BIGINT AS timestamp,
            {dropped} AS drop_reason
        FROM {transactions.sql} AS t LEFT JOIN ({grouped}) AS p ON t.product_id = p.product_id"""
    # The type without the labels: "BREAD:ITALIAN/FRENCH" of the category BREAD becomes "italian/french".
    own = "lower(product_type)"
    for label in ("product_category", "department"):
        own = f"replace({own}, coalesce(lower({label}), ''), '')"
    own = f"nullif(trim({own}, ' :-/'), '')"
    columns = f"""
            concat_ws(' ', {own}, lower(brand), lower(package_size)) AS text, NULL::VARCHAR AS image,
            department AS topic_l1, product_category AS topic_l2, NULL::FLOAT[] AS content_embedding,
            manufacturer_id, brand, {reasons(("department = 'COUPON'", "not_a_product"))} AS drop_reason"""
    if options.group == "product":
        items = f"SELECT product_id AS item_id, {columns} FROM {products.sql}"
    else:
        items = f"""
        SELECT g.item_id, {columns.replace("lower(package_size)", "NULL").replace("manufacturer_id,", "manufacturers,")}
        FROM ({grouped}) AS g JOIN (
            SELECT item_id, list_sort(list(DISTINCT manufacturer_id)) AS manufacturers
            FROM ({grouped}) GROUP BY item_id
        ) AS m ON g.item_id = m.item_id
        WHERE g.product_id = g.item_id"""
    return SourceTables(
        events,
        items,
        id_features=("manufacturer_id" if options.group == "product" else "manufacturers", "brand"),
        tables=(transactions, products),
        events_by_file=transactions,
        timestamp_is_date=True,
    )
