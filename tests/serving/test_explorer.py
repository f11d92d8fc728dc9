"""The explorer page in real headless Chromium, over a real service."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from conftest import HOSTILE_ITEM, HOSTILE_TEXT  # type: ignore[attr-defined]
from service_process import ServiceProcess

from mtmh.retrieval.merge import head_quotas, head_shares, quota_merge

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH")

READY = "/answered in/.test(document.getElementById('status').textContent)"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as running:
        yield running
        assert running.problems == []


def open_page(browser: Browser, service: ServiceProcess, address: str = "") -> None:
    browser.open(f"{service.url}/{address}")
    browser.wait(READY)


def items_of(browser: Browser, column: str) -> list[int]:
    return [
        int(item)
        for item in browser.evaluate(
            f"[...document.querySelectorAll('#column-{column} .answer')].map((one) => one.dataset.item)"
        )
    ]


def wait_for_items(browser: Browser, items: list[int]) -> None:
    shown = "[...document.querySelectorAll('#column-merged .answer')].map((one) => Number(one.dataset.item))"
    browser.wait(f"JSON.stringify({shown}) === '{json.dumps(items, separators=(',', ':'))}'")


def move_alpha(browser: Browser, alpha: int) -> None:
    browser.evaluate(
        f"{{const slider = document.getElementById('alpha'); slider.value = {alpha};"
        "slider.dispatchEvent(new Event('input', {bubbles: true}))}"
    )


def merged_by_service(service: ServiceProcess, item: int, k: int, alpha: float) -> list[tuple[int, str]]:
    answer = service.retrieve(triggers=[item], k=k, alpha=alpha).json["answers"][0]
    return [(item["item"], item["head"]) for item in answer["items"]]


def test_the_merge_of_the_page_is_the_merge_of_the_library(browser: Browser, service: ServiceProcess) -> None:
    """The same lists, quotas and answers for many random lists, by JavaScript and by Python."""
    open_page(browser, service)
    rng = np.random.default_rng(0)
    cases: list[dict[str, Any]] = []
    expected = []
    for _ in range(400):
        num_heads, k = int(rng.integers(1, 4)), int(rng.integers(1, 31))
        alpha = float(rng.choice([0, 100, 50, rng.integers(0, 101), round(100 * rng.random(), 1)]))
        catalogue = int(rng.integers(3, 50))
        lists = [rng.permutation(catalogue)[: rng.integers(0, k + 1)].tolist() for _ in range(num_heads)]
        heads = {f"head{place}": [{"item": item} for item in items] for place, items in enumerate(lists)}
        cases.append({"heads": heads, "alpha": alpha, "k": k})
        width = max(1, *map(len, lists))
        arrays = [np.array([[*items, *[-1] * (width - len(items))]], np.int64).reshape(1, width) for items in lists]
        merged = quota_merge(arrays, head_quotas(head_shares(alpha, num_heads), k)).items[0]
        expected.append(merged[merged >= 0].tolist())
    found = browser.evaluate(
        "import('/static/merge.js').then(({mergeAt}) =>"
        f"{json.dumps(cases)}.map(({{heads, alpha, k}}) => mergeAt(heads, alpha, k).map((one) => one.item)))"
    )
    assert found == expected


def test_ids_beyond_the_numbers_of_javascript_stay_themselves(browser: Browser, service: ServiceProcess) -> None:
    open_page(browser, service)
    ids = [17, -5, 2**53 + 1, 2**63 - 1, -(2**63)]
    items = [{"item": item, "score": -0.5, "trigger": ids[0], "text": '"item":7, "trigger": 8'} for item in ids]
    answer = {"version": "000001", "answers": [{"trigger": None, "items": items}], "descriptions": [{"item": "B01"}]}
    for text in (json.dumps(answer), json.dumps(answer, separators=(",", ":"))):
        found = browser.evaluate(f"import('/static/ids.js').then(({{parseAnswer}}) => parseAnswer({json.dumps(text)}))")
        shown = found["answers"][0]["items"]
        assert [item["item"] for item in shown] == list(map(str, ids))
        assert [item | {"item": 0, "trigger": 0} for item in shown] == [
            item | {"item": 0, "trigger": 0} for item in items
        ]
        assert {item["trigger"] for item in shown} == {"17"}
        assert (found["answers"][0]["trigger"], found["descriptions"]) == (None, [{"item": "B01"}])


def test_the_slider_merges_as_the_service_does_without_asking_it(browser: Browser, service: ServiceProcess) -> None:
    open_page(browser, service, "#item=17&k=9&alpha=50")
    browser.wait("!document.getElementById('examples').hidden")  # which ask, too
    before = service.metric('mtmh_requests_total{route="/v1/retrieve",status="200"}')
    shown = {}
    for alpha in (0, 1, 5, 6, 33, 50, 67, 94, 95, 100):
        move_alpha(browser, alpha)
        heads = browser.evaluate(
            "[...document.querySelectorAll('#column-merged .answer')].map((one) => one.dataset.head)"
        )
        shown[alpha] = list(zip(items_of(browser, "merged"), heads, strict=True))
    assert service.metric('mtmh_requests_total{route="/v1/retrieve",status="200"}') == before
    for alpha, merged in shown.items():
        assert merged == merged_by_service(service, 17, 9, alpha)
    assert [item for item, _ in shown[100]] == items_of(browser, "engagement")
    assert [item for item, _ in shown[0]] == items_of(browser, "relevance")
    assert "alpha=100" in browser.evaluate("location.hash")


def test_searching_by_keyboard(browser: Browser, service: ServiceProcess) -> None:
    target = service.call("GET", "/v1/items?limit=5").json["items"][4]
    open_page(browser, service)
    browser.evaluate("document.getElementById('query').focus()")
    browser.type(target["text"])
    browser.wait("!document.getElementById('suggestions').hidden")
    assert browser.evaluate("document.getElementById('query').getAttribute('aria-expanded')") == "true"
    browser.key("ArrowDown")
    active = browser.evaluate("document.getElementById('query').getAttribute('aria-activedescendant')")
    assert browser.evaluate(f"document.getElementById('{active}').getAttribute('aria-selected')") == "true"
    browser.key("Escape")
    assert browser.evaluate("document.getElementById('suggestions').hidden")
    browser.key("ArrowDown")
    browser.wait("!document.getElementById('suggestions').hidden")
    browser.key("Enter")
    browser.wait(f"location.hash.includes('item={target['item']}') && {READY}")
    browser.wait(f"document.querySelector('#asked h2').textContent.includes({json.dumps(target['text'])})")
    assert items_of(browser, "engagement")


def test_an_answer_opens_by_click_and_back_returns(browser: Browser, service: ServiceProcess) -> None:
    open_page(browser, service, "#item=17&k=5")
    before = items_of(browser, "merged")
    browser.evaluate("document.querySelector('#column-relevance .answer').click()")
    browser.wait(f"!location.hash.includes('item=17&') && {READY}")
    browser.wait("!document.querySelector('#asked h2').textContent.endsWith('· 17')")
    browser.evaluate("history.back()")
    browser.wait(
        "location.hash.includes('item=17') && document.querySelector('#asked h2').textContent.endsWith('· 17')"
    )
    assert items_of(browser, "merged") == before


def test_a_user_view_from_a_history(browser: Browser, service: ServiceProcess) -> None:
    popular = [item["item"] for item in service.call("GET", "/v1/items?limit=3").json["items"]]
    address = "&".join(f"history={item}" for item in popular)
    open_page(browser, service, f"#view=user&{address}&k=8&alpha=30")

    def expected(history: list[int], alpha: int) -> list[int]:
        answer = service.retrieve(history=history, k=8, alpha=alpha).json["answers"][0]
        return [item["item"] for item in answer["items"]]

    assert items_of(browser, "merged") == expected(popular, 30)
    numbers = "[...document.querySelectorAll('#column-merged .number')].map((one) => Number(one.textContent))"
    by_score = browser.evaluate(numbers)
    assert by_score == sorted(by_score, reverse=True)
    move_alpha(browser, 90)
    wait_for_items(browser, expected(popular, 90))
    browser.evaluate("document.querySelector('.chips button').click()")
    browser.wait(f"document.querySelectorAll('.chips li').length === 2 && {READY}")
    assert browser.evaluate("location.hash.split('history=').length") == 3
    wait_for_items(browser, expected(popular[1:], 90))


def test_tabs_by_keyboard(browser: Browser, service: ServiceProcess) -> None:
    open_page(browser, service, "#item=17")
    browser.evaluate("document.getElementById('tab-item').focus()")
    browser.key("ArrowRight")
    browser.wait("document.getElementById('tab-user').getAttribute('aria-selected') === 'true'")
    assert browser.evaluate("document.activeElement.id") == "tab-user"
    browser.wait("document.querySelectorAll('.chips li').length === 1")  # the item that was looked at


def test_the_curve_marks_the_alpha_of_the_slider(browser: Browser, service: ServiceProcess) -> None:
    open_page(browser, service, "#item=17&alpha=50")
    curve = service.call("GET", "/v1/index").json["curve"]
    assert browser.evaluate("document.querySelectorAll('#curve .dot').length") == len(curve["points"])
    positions = []
    for alpha in (0, 25, 50, 100):
        move_alpha(browser, alpha)
        assert browser.evaluate("document.querySelector('#curve .mark-label').textContent") == f"alpha {alpha}"
        positions.append(
            browser.evaluate(
                "['cx', 'cy'].map((name) => Number(document.querySelector('#curve .mark').getAttribute(name)))"
            )
        )
    dots = browser.evaluate(
        "[...document.querySelectorAll('#curve .dot')]"
        ".map((dot) => ['cx', 'cy'].map((name) => Number(dot.getAttribute(name))))"
    )
    assert [positions[0], positions[2], positions[3]] == [pytest.approx(dot) for dot in dots]
    assert positions[1] == pytest.approx([(a + b) / 2 for a, b in zip(dots[0], dots[1], strict=True)])


def test_errors_are_shown(browser: Browser, service: ServiceProcess) -> None:
    browser.open(f"{service.url}/#item=99999999")
    browser.wait("document.getElementById('status').classList.contains('error')")
    assert "99999999" in browser.evaluate("document.getElementById('status').textContent")
    assert "Search for another item" in browser.evaluate("document.getElementById('results').textContent")
    assert browser.evaluate("document.getElementById('facts').childElementCount") == 0
    # The browser itself notes the answer 404 as an error; that one is wanted.
    browser.problems[:] = [
        problem for problem in browser.problems if "the server responded with a status of 4" not in problem
    ]


def test_it_opens_on_an_example_and_shows_more(browser: Browser, service: ServiceProcess) -> None:
    open_page(browser, service)
    popular = [item["item"] for item in service.call("GET", "/v1/items?limit=12").json["items"]]
    opened = browser.evaluate(r"document.querySelector('#asked .id').textContent.replace(/\D/g, '')")
    assert int(opened) in popular
    columns = "[...document.querySelectorAll('#results > section')].map((column) => column.id)"
    # As the slider: relevance on the left, engagement on the right.
    assert browser.evaluate(columns) == ["column-relevance", "column-merged", "column-engagement"]
    assert browser.evaluate("document.querySelectorAll('#examples button').length") == 5
    before = browser.evaluate("document.querySelector('#asked h2').textContent")
    browser.evaluate("document.querySelectorAll('#examples button')[1].click()")
    browser.wait(f"document.querySelector('#asked h2')?.textContent !== {json.dumps(before)} && {READY}")


def test_text_of_items_is_shown_as_text(browser: Browser, service: ServiceProcess) -> None:
    open_page(browser, service, f"#item={HOSTILE_ITEM}")
    assert HOSTILE_TEXT in browser.evaluate("document.querySelector('#asked h2').textContent")
    browser.evaluate("document.getElementById('query').focus()")
    browser.type("onerror=")
    browser.wait("!document.getElementById('suggestions').hidden")
    assert HOSTILE_TEXT in browser.evaluate("document.getElementById('suggestions').textContent")
    open_page(browser, service, f"#view=user&history={HOSTILE_ITEM}")
    assert HOSTILE_TEXT in browser.evaluate("document.querySelector('.chips').textContent")
    assert browser.evaluate("document.querySelectorAll('img, main script').length") == 0
    assert browser.evaluate("typeof window.attacked") == "undefined"


def test_every_control_has_a_name(browser: Browser, service: ServiceProcess) -> None:
    open_page(browser, service, "#item=17")
    browser.command("Accessibility.enable")
    nodes = browser.command("Accessibility.getFullAXTree")["nodes"]
    browser.command("Accessibility.disable")
    roles = ("button", "slider", "combobox", "spinbutton", "tab", "link", "img")
    controls = [node for node in nodes if not node["ignored"] and node["role"]["value"] in roles]
    assert {"slider", "combobox", "spinbutton", "tab", "button"} <= {node["role"]["value"] for node in controls}
    assert [node for node in controls if not node.get("name", {}).get("value", "").strip()] == []
    assert browser.evaluate("document.documentElement.lang") == "en"


def test_nothing_comes_from_elsewhere(browser: Browser, service: ServiceProcess) -> None:
    open_page(browser, service, "#item=17")
    loaded = browser.evaluate("performance.getEntriesByType('resource').map((one) => one.name)")
    assert loaded
    assert all(name.startswith(f"{service.url}/") for name in loaded)


def test_narrow_and_dark_pages_fit(browser: Browser, service: ServiceProcess, tmp_path: Path) -> None:
    for width, scheme in ((400, "light"), (1280, "dark")):
        browser.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False
        )
        browser.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        open_page(browser, service, "#item=17")
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        paper = browser.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
        browser.screenshot(Path(os.environ.get("MTMH_SCREENSHOTS", tmp_path)) / f"explorer-{scheme}-{width}.png")
    browser.command("Emulation.clearDeviceMetricsOverride")
