"""The page of a chain in real Chromium: readable on a phone, in the dark, and to all."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import CHROMIUM, Browser

from mtmh.chain.page import page_of
from mtmh.chain.record import ChainRecord, Job, StageRecord, Verdict

LONG = "/shared/models/a-name-without-any-place-to-break-it/" + "x" * 120
RECORD = ChainRecord(
    recipe="mine.yaml",
    overrides=["training.max_steps=2000", f"paths.root={LONG}"],
    scheduler="local_cwd",
    outcome="stopped",
    message="index recall of head relevance is 0.71, expected at least 0.95 (index.min_recall)",
    started_at="2026-11-28T09:00:00+00:00",
    seconds=754.0,
    stages=[
        StageRecord(
            stage="prepare",
            result="ran",
            reasons=["nothing there yet", f"input {LONG} changed"],
            seconds=33.0,
            job=Job(handle="local_cwd://torchx/prepare-17", host="here"),
            logs=LONG,
            output=LONG,
        ),
        StageRecord(stage="train", result="failed", seconds=600.0, tail=f"ValueError: {LONG}: not there"),
        StageRecord(stage="evaluate"),
    ],
    gates=[Verdict(gate="recall of the index", passed=False, figures=["engagement 0.97", "relevance 0.71 < 0.95"])],
)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH")
def test_it_fits_a_phone_and_breaches_no_rule_of_accessibility(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(page_of(RECORD))
    with Browser(tmp_path / "profile") as browser:
        for width, scheme in ((390, "light"), (390, "dark"), (1280, "light"), (1280, "dark")):
            browser.show_as(width, scheme)
            browser.open(page.as_uri())
            assert browser.evaluate("document.documentElement.scrollWidth") <= width
            assert browser.evaluate(
                "[...document.querySelectorAll('main *')].every((one) => one.scrollWidth <= one.clientWidth"
                " || getComputedStyle(one).overflowX === 'visible')"
            ), "no part scrolls sideways either"
            assert browser.breaches() == []
        assert browser.problems == []
