"""UCI Online Retail: invoice lines of a gift shop, with returns and blanks left in.

A line is an engagement unless a rule speaks against it; each rule counts its lines: ``no_customer``, ``cancelled``
(invoice number with a C), ``adjustment`` (with another letter), ``returned`` (no positive quantity), ``not_a_product``
(stock codes for postage, fees, vouchers and the like), ``no_price``.

There is no items table. What an item is comes from its first valid line, so that later lines change nothing: its
description (text), its price, and its ``family``, the digits that variants of a product share. There are no topics.
"""

from __future__ import annotations

from mtmh.config import Settings
from mtmh.prepare.sources.base import SourceContext, SourceTables
from mtmh.prepare.sql import reasons
from mtmh.prepare.table_file import table_file

PRODUCT_CODE = "^([0-9]{5}[A-Z]{0,2}|DCGS.*|PADS)$"


class OnlineRetailOptions(Settings):
    """``data.options`` of the source ``online-retail``: none."""


def online_retail_tables(context: SourceContext) -> SourceTables:
    """Reads ``online_retail.csv`` in ``data.input``.

    Raises:
        ValueError: the file is missing, broken, or lacks a column.
    """
    context.options(OnlineRetailOptions)
    lines = table_file(
        context.connection,
        [context.file("online_retail.csv.gz", "online_retail.csv")],
        types={
            "InvoiceNo": "VARCHAR",
            "StockCode": "VARCHAR",
            "Description": "VARCHAR",
            "Quantity": "BIGINT",
            "InvoiceDate": "TIMESTAMP WITH TIME ZONE",  # without one: of UTC
            "UnitPrice": "DOUBLE",
            "CustomerID": "VARCHAR",
        },
    )
    dropped = reasons(
        ("CustomerID IS NULL OR trim(CustomerID) = ''", "no_customer"),
        ("upper(InvoiceNo) LIKE 'C%'", "cancelled"),
        ("NOT regexp_matches(InvoiceNo, '^[0-9]+$')", "adjustment"),
        ("Quantity IS NULL OR Quantity <= 0", "returned"),
        (f"NOT regexp_matches(upper(trim(StockCode)), '{PRODUCT_CODE}')", "not_a_product"),
        ("UnitPrice IS NULL OR UnitPrice <= 0", "no_price"),
    )
    events = f"""
        SELECT trim(CustomerID) AS user_id, nullif(upper(trim(StockCode)), '') AS item_id,
            floor(epoch(InvoiceDate))::BIGINT AS timestamp, {dropped} AS drop_reason,
            trim(Description) AS description, UnitPrice AS price, InvoiceNo AS invoice
        FROM {lines.sql}"""
    first = "(timestamp, invoice, description, price)"
    items = f"""
        SELECT item_id, arg_min(description, {first}) AS text, NULL::VARCHAR AS image,
            NULL::VARCHAR AS topic_l1, NULL::VARCHAR AS topic_l2, NULL::FLOAT[] AS content_embedding,
            nullif(regexp_extract(item_id, '^[0-9]{{5}}'), '') AS family, arg_min(price, {first}) AS price,
            NULL::VARCHAR AS drop_reason
        FROM ({events})
        WHERE drop_reason IS NULL AND item_id IS NOT NULL AND timestamp IS NOT NULL
        GROUP BY item_id"""
    return SourceTables(
        events,
        items,
        id_features=("family",),
        float_features=("price",),
        items_from_events=True,
        tables=(lines,),
        events_by_file=lines,
        timestamp_is_date=True,
    )
