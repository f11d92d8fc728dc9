"""The explorer page in real headless Chromium, over a real service."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

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
    answer: dict[str, Any] = {"version": "000001", "descriptions": [{"item": "B01"}]}
    answer["answers"] = [{"trigger": None, "items": items, "ignored": ids}]
    for text in (json.dumps(answer), json.dumps(answer, separators=(",", ":"))):
        found = browser.evaluate(f"import('/static/ids.js').then(({{parseAnswer}}) => parseAnswer({json.dumps(text)}))")
        shown = found["answers"][0]["items"]
        assert [item["item"] for item in shown] == list(map(str, ids))
        assert found["answers"][0]["ignored"] == list(map(str, ids))
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
        cap = {"trigger": math.ceil(1.5 * 8 / len(history))}
        answer = service.retrieve(history=history, k=8, alpha=alpha, max_per=cap).json["answers"][0]
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
    reasons = "[...document.querySelectorAll('#column-merged .because b')].map((one) => one.textContent)"
    told = Counter(browser.evaluate(reasons))
    names = [item["text"] for item in service.call("GET", "/v1/items?limit=3").json["items"]]
    assert set(told) <= set(names[1:])
    assert max(told.values()) <= 6
    browser.evaluate(
        "{const cap = document.getElementById('cap'); cap.value = 4; cap.dispatchEvent(new Event('input'))}"
    )
    browser.wait(f"location.hash.includes('cap=4') && {READY} && Object.is({reasons}.length, 8)")
    four = service.retrieve(history=popular[1:], k=8, alpha=90, max_per={"trigger": 4}).json["answers"][0]
    wait_for_items(browser, [item["item"] for item in four["items"]])
    assert set(Counter(browser.evaluate(reasons)).values()) == {4}


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
    results = browser.evaluate("document.getElementById('results').textContent")
    assert results.startswith("Not found")
    assert "Search for another item" in results
    assert browser.evaluate("document.getElementById('facts').childElementCount") == 0
    # The browser itself notes the answer 404 as an error; that one is wanted.
    forget(browser, "the server responded with a status of 4")


def forget(browser: Browser, wanted: str) -> None:
    browser.problems[:] = [problem for problem in browser.problems if wanted not in problem]


def test_what_is_missing_is_said_in_words(browser: Browser, service: ServiceProcess) -> None:
    open_page(browser, service, "#view=user&history=17&history=99999999&k=5")
    assert "passed over: 99999999" in browser.evaluate("document.getElementById('status').textContent")
    browser.open(f"{service.url}/#view=user")
    browser.wait("document.querySelector('.nothing') !== null")
    assert "No history yet" in browser.evaluate("document.getElementById('results').textContent")
    browser.evaluate("document.getElementById('query').focus()")
    browser.type("no such words")
    browser.wait("document.getElementById('status').textContent.includes('No item has all the words')")
    browser.evaluate("{const k = document.getElementById('k'); k.value = ''; k.dispatchEvent(new Event('input'))}")
    assert "expected a whole number from 1" in browser.evaluate("document.getElementById('status').textContent")
    assert browser.evaluate("document.getElementById('k').getAttribute('aria-invalid')") == "true"


def test_a_service_that_ends_is_said(tmp_path: Path, served_recipe: Path) -> None:
    with Browser(tmp_path / "profile") as browser:
        with ServiceProcess(served_recipe) as ending:
            open_page(browser, ending, "#item=17&k=5")
        browser.evaluate("document.querySelector('#column-merged .answer').click()")
        browser.wait("document.querySelector('.nothing h2')?.textContent === 'No answer'")
        assert "Is mtmh serve still running?" in browser.evaluate("document.getElementById('status').textContent")
        assert browser.evaluate("document.querySelector('.nothing button').textContent") == "Try again"
        assert browser.breaches() == []


def test_an_item_is_found_in_any_case_and_without_accents(service: ServiceProcess) -> None:
    item = service.call("GET", "/v1/items?limit=1").json["items"][0]
    shouted = quote(item["text"].upper().replace("A", "Á").replace("E", "È"))
    found = service.call("GET", f"/v1/items?query={shouted}").json["items"]
    assert item in found
    by_id = service.call("GET", "/v1/items?query=17").json["items"]
    assert by_id[0]["item"] == 17
    assert all("17" in str(one["item"])[:2] or "17" in one["text"] for one in by_id)


def test_it_opens_on_an_example_and_shows_more(browser: Browser, service: ServiceProcess) -> None:
    open_page(browser, service)
    popular = [item["item"] for item in service.call("GET", "/v1/items?limit=12").json["items"]]
    opened = browser.evaluate(r"document.querySelector('#asked .id').textContent.replace(/\D/g, '')")
    assert int(opened) in popular
    columns = "[...document.querySelectorAll('#results > section')].map((column) => column.id)"
    # As the slider and the chart: engagement on the left, relevance on the right.
    assert browser.evaluate(columns) == ["column-engagement", "column-merged", "column-relevance"]
    assert browser.evaluate("document.querySelectorAll('#examples button').length") == 5
    before = browser.evaluate("document.querySelector('#asked h2').textContent")
    browser.evaluate("document.querySelectorAll('#examples button')[1].click()")
    browser.wait(f"document.querySelector('#asked h2')?.textContent !== {json.dumps(before)} && {READY}")


# The first 11 of the 12 questions for examples are refused, as a busy service does.
REFUSING = """
const real = window.fetch;
let asked = 0;
window.fetch = (url, ...more) => String(url).includes("/v1/retrieve") && ++asked < 12
  ? Promise.resolve(new Response('{"detail": "busy"}', {status: 429})) : real(url, ...more);
"""


def test_it_opens_where_most_questions_for_examples_are_refused(browser: Browser, service: ServiceProcess) -> None:
    added = browser.command("Page.addScriptToEvaluateOnNewDocument", source=REFUSING)
    open_page(browser, service)
    browser.command("Page.removeScriptToEvaluateOnNewDocument", identifier=added["identifier"])
    assert browser.evaluate("document.querySelectorAll('#examples button').length") == 1
    assert len(items_of(browser, "merged")) == 10


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


ADDRESSES = {
    "item": "#item=17",
    "user": "#view=user&history=17&history=4&history=23",
    "nothing": "#view=user",
    "missing": "#item=99999999",
}
SETTLED = f"({READY} || document.querySelector('.nothing') !== null) && !document.getElementById('examples').hidden"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_axe_finds_nothing_and_nothing_scrolls_sideways(
    browser: Browser, service: ServiceProcess, tmp_path: Path, width: int, scheme: str
) -> None:
    shots = Path(os.environ.get("MTMH_SCREENSHOTS", tmp_path))
    browser.show_as(width, scheme)
    for name, address in ADDRESSES.items():
        browser.open(f"{service.url}/{address}")
        browser.wait(SETTLED)
        assert browser.breaches() == [], name
        assert browser.evaluate("document.documentElement.scrollWidth") <= width, name
        browser.screenshot(shots / f"explorer-{name}-{scheme}-{width}.png")
    browser.open(f"{service.url}/docs")
    browser.wait("document.querySelectorAll('#routes section').length > 5")
    assert browser.breaches() == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= width, "docs"
    browser.command("Emulation.clearDeviceMetricsOverride")
    forget(browser, "the server responded with a status of 4")


def test_the_focus_ring_of_every_control_is_whole(browser: Browser, service: ServiceProcess) -> None:
    """No ancestor cuts it off, and no neighbour lies over it: all of it is within what is shown of the page."""
    browser.show_as(1280)
    open_page(browser, service, "#item=17&k=3")
    cut = browser.evaluate(
        """(() => [...document.querySelectorAll('button, input')].filter((one) => one.offsetParent).filter((one) => {
          one.focus({focusVisible: true});
          const style = getComputedStyle(one);
          if (style.outlineStyle === 'none') return true;
          const reach = parseFloat(style.outlineOffset) + parseFloat(style.outlineWidth);
          const box = one.getBoundingClientRect();
          for (let above = one.parentElement; above && above !== document.body; above = above.parentElement) {
            if (getComputedStyle(above).overflow === 'visible') continue;
            const room = above.getBoundingClientRect();
            if (box.left - reach < room.left || box.right + reach > room.right) return true;
            if (box.top - reach < room.top || box.bottom + reach > room.bottom) return true;
          }
          return false;
        }).map((one) => one.id || one.className))()"""
    )
    assert cut == []


def test_arrow_keys_on_the_slider_go_the_way_of_the_columns(browser: Browser, service: ServiceProcess) -> None:
    """Right is towards relevance, which stands on the right."""
    open_page(browser, service, "#item=17&alpha=50")
    browser.evaluate("document.getElementById('alpha').focus()")
    browser.key("ArrowRight")
    browser.wait("location.hash.includes('alpha=49')")
    ends = browser.evaluate("[...document.querySelectorAll('.ends span')].map((one) => one.textContent)")
    assert ends == ["engagement only", "relevance only"]
    xs = browser.evaluate(
        "[...document.querySelectorAll('#curve .end')].sort((a, b) => a.getAttribute('x') - b.getAttribute('x'))"
        ".map((one) => one.textContent)"
    )
    curve = service.call("GET", "/v1/index").json["curve"]["points"]
    assert xs == (ends if curve[0]["match"] > curve[-1]["match"] else ends[::-1])
    assert browser.evaluate("document.querySelectorAll('#curve .interval').length") == 2 * len(curve)


def test_signs_are_explained(browser: Browser, service: ServiceProcess) -> None:
    open_page(browser, service, "#item=17&alpha=100&k=5")
    legend = browser.evaluate("document.getElementById('legend').textContent")
    for words in ("Engagement head: the stripe", "Green", "Grey, dashed", "not in the merge", "brought it into"):
        assert words in legend
    signs = "[...document.querySelectorAll('.answer, .answer .tag, .topics .same, .column h2')]"
    assert browser.evaluate(f"{signs}.length") > 10
    assert browser.evaluate(f"{signs}.filter((one) => !one.title).map((one) => one.textContent)") == []
    left_out = "[...document.querySelectorAll('#column-relevance .left-out')].map((one) => one.title)"
    assert all(title.startswith("Not in the merge at this alpha") for title in browser.evaluate(left_out))


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


def test_what_feedback_taught_has_a_panel_where_the_service_learns(
    browser: Browser, served_recipe: Path, service: ServiceProcess, tmp_path: Path
) -> None:
    open_page(browser, service)
    assert browser.evaluate("document.getElementById('learned-panel').hidden") is True
    adaptive = {"alphas": [20, 80], "file": str(tmp_path / "feedback.sqlite")}
    with ServiceProcess(served_recipe, adaptive_alpha=adaptive) as learning:
        for number in range(30):
            answer = learning.retrieve(triggers=[number % 10 + 1], k=5)
            shown = [item["item"] for item in answer.json["answers"][0]["items"]]
            feedback = {"request_id": answer.headers["X-Request-ID"], "shown": shown, "engaged": shown[:1]}
            assert learning.write("POST", "/v1/feedback", feedback).status == 200
        open_page(browser, learning)
        browser.wait("document.querySelectorAll('#learned tbody tr').length === 2")
        assert browser.evaluate("document.getElementById('learned-panel').hidden") is False
        rows = browser.evaluate("[...document.querySelectorAll('#learned tbody tr')].map((row) => row.textContent)")
        expected = learning.call("GET", "/v1/feedback").json["alphas"]
        for row, of_alpha in zip(rows, expected, strict=True):
            value, error = (100 * of_alpha["reward"]["dr"][name] for name in ("value", "standard_error"))
            assert row == f"{of_alpha['alpha']:g}{value:.2f} ± {error:.2f} %{of_alpha['chosen']}"
        assert "30 answers with feedback" in browser.evaluate("document.getElementById('learned-note').textContent")
