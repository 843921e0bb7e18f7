"""The gateway's page in a real browser: by keyboard alone, with names for screen readers, and without asking anybody else.

``SILOREC_SCREENSHOT=docs/gateway.png pytest tests/e2e/test_gateway_page.py -k picture`` takes the picture in the docs anew.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from client.gateway.app import Settings
from common.engine import Engine, Request
from common.privacy.signing import SigningKey, create_key
from common.serving import Live
from tests.client.gateway_server import gateway, opened
from tests.made_up_shop import shop_bundle

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = Path("/usr/bin/chromium")
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"needs a browser at {CHROMIUM}")

TITLE = "The Reading Room"
WAIT = 20_000  # milliseconds


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return create_key(tmp_path_factory.mktemp("keys") / "signer.key")


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, key: SigningKey) -> Live:
    path = tmp_path_factory.mktemp("bundles") / "library.bundle"
    shop_bundle(path, key)
    return opened(path, key.public_key)


@pytest.fixture(scope="module")
def address(live: Live) -> Iterator[str]:
    with gateway(live, Settings(title=TITLE)) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=str(CHROMIUM), args=arguments)
        yield found
        found.close()


@dataclass
class Visit:
    """A page that is open, and what it did that nobody sees."""

    page: Page
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def choose(self, typed: str) -> str:
        """By keyboard: the first title that fits; its text."""
        self.page.locator("#search").press_sequentially(typed)
        self.page.locator('[role="option"]').first.wait_for(timeout=WAIT)
        self.page.keyboard.press("ArrowDown")
        chosen = self.page.locator('[role="option"][aria-selected="true"]')
        assert chosen.count() == 1
        title = chosen.evaluate(
            "option => [...option.childNodes].filter(n => n.nodeName != 'SMALL').map(n => n.textContent).join('')"
        )
        before = self.page.locator("#said").inner_text()
        self.page.keyboard.press("Enter")
        self.until("before => document.getElementById('said').textContent !== before", before)
        self.settled()
        return str(title)

    def until(self, condition: str, argument: Any = None) -> None:
        """Wait for a JavaScript function to be true; playwright's own way to wait evaluates strings, which the page forbids."""
        end = time.monotonic() + WAIT / 1000
        while not self.page.evaluate(condition, argument):
            assert time.monotonic() < end, condition
            time.sleep(0.01)

    def settled(self) -> None:
        """Until no answer is waited for."""
        self.until("() => !document.getElementById('results').classList.contains('old')")
        self.until("() => document.getElementById('said').textContent.includes('recommendations')")

    def titles(self) -> list[str]:
        return self.page.locator("#results h3").all_inner_texts()


def visit(browser: Browser, address: str, **options: Any) -> Visit:
    page = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options}).new_page()
    found = Visit(page)
    page.on("console", lambda message: found.said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: found.said.append(f"error: {error}"))
    page.on("request", lambda request: found.asked.append(request.url))
    page.goto(address)
    found.settled()
    return found


@pytest.fixture
def open_page(browser: Browser, address: str) -> Iterator[Visit]:
    """A visit after which the console must be empty, and nobody but the gateway must have been asked."""
    found = visit(browser, address)
    yield found
    assert found.said == []
    assert [url for url in found.asked if not url.startswith(f"{address}/")] == []
    assert not [url for url in found.asked if "?" in url]
    assert found.page.context.cookies() == []
    assert found.page.evaluate("localStorage.length + sessionStorage.length") == 0
    found.page.context.close()


def test_somebody_without_choices_sees_what_is_popular_and_is_told_so(open_page: Visit, live: Live) -> None:
    page = open_page.page
    assert page.locator("h1").inner_text() == TITLE == page.title()
    assert page.locator("#results-title").inner_text() == "Popular"
    assert "Nothing is chosen yet" in page.locator("#results-note").inner_text()
    assert open_page.titles() == [item.title for item in live.engine.recommend(Request())]
    assert page.locator(".bars").count() == 0
    assert page.locator("#alarm").is_hidden()


def test_a_title_is_found_and_ten_recommendations_come_with_reasons_all_by_keyboard(open_page: Visit, live: Live) -> None:
    page, engine = open_page.page, live.engine
    while page.evaluate("document.activeElement.id") != "search":
        page.keyboard.press("Tab")
    chosen = [open_page.choose("crypt"), open_page.choose("dragon"), open_page.choose("harb")]
    assert page.locator("#chosen span").all_inner_texts() == chosen
    history = tuple(engine.bundle.catalogue.titles.index(title) for title in chosen)
    typical = float(np.median(engine.bundle.items.biases))
    expected = engine.recommend(Request(history=history, k=10, explain=True))
    assert open_page.titles() == [item.title for item in expected]
    for place, item in enumerate(expected):
        because = page.locator("#results .because").nth(place).inner_text()
        assert because.startswith("Because ")
        assert item.reasons[0].title in because
        values = page.locator("#results > li").nth(place).locator(".bars .value").all_inner_texts()
        assert values[0] == f"{item.reasons[0].contribution:+.2f}".replace("-", "−")
        parts = [float(value.replace("−", "-")) for value in values]
        assert sum(parts) == pytest.approx(item.score - typical, abs=0.03)  # each was rounded to two places
    assert page.locator("#said").inner_text() == f"10 recommendations after {chosen[0]}, {chosen[1]} and {chosen[2]}"


def test_suggestions_follow_the_arrow_keys_and_escape_closes_them(open_page: Visit) -> None:
    page = open_page.page
    search = page.locator("#search")
    search.press_sequentially("dragon")
    page.locator('[role="option"]').first.wait_for(timeout=WAIT)
    n = page.locator('[role="option"]').count()
    assert n > 2
    assert search.get_attribute("aria-expanded") == "true"
    assert page.locator("#said").inner_text() == f"{n} titles fit"
    assert search.get_attribute("aria-activedescendant") is None
    for key, active in (("ArrowDown", 0), ("ArrowDown", 1), ("ArrowUp", 0), ("ArrowUp", n - 1), ("ArrowDown", 0)):
        page.keyboard.press(key)
        assert search.get_attribute("aria-activedescendant") == f"option-{active}"
        assert page.locator('[role="option"][aria-selected="true"]').get_attribute("id") == f"option-{active}"
    page.keyboard.press("Escape")
    assert search.get_attribute("aria-expanded") == "false"
    assert page.locator("#suggestions").is_hidden()
    assert search.input_value() == "dragon"
    page.keyboard.press("Escape")
    assert search.input_value() == ""


def test_choices_are_taken_back_by_keyboard_and_the_focus_stays_near(open_page: Visit) -> None:
    page = open_page.page
    first, second = open_page.choose("crypt"), open_page.choose("dragon")
    page.get_by_role("button", name=f"Remove {first}").focus()
    page.keyboard.press("Enter")
    assert page.locator("#chosen span").all_inner_texts() == [second]
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == f"Remove {second}"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "search"
    open_page.settled()
    assert page.locator("#results-title").inner_text() == "Popular"
    open_page.choose("crypt")
    page.keyboard.press("Backspace")  # in the empty field: the last choice goes
    assert page.locator("#chosen span").count() == 0
    page.get_by_role("button", name=re.compile(r"^Add ")).first.press("Enter")
    assert page.locator("#chosen span").count() == 1
    page.get_by_role("button", name="Remove all").press("Enter")
    assert page.locator("#choices").is_hidden()
    open_page.settled()


def test_category_and_variety_reach_the_engine(open_page: Visit, live: Live) -> None:
    page, engine = open_page.page, live.engine
    title = open_page.choose("dragon")
    position = engine.bundle.catalogue.titles.index(title)
    page.get_by_label("Category").select_option("Crime")
    open_page.until("() => document.getElementById('said').textContent.includes('in Crime')")
    open_page.settled()
    wanted = engine.recommend(Request(history=(position,), categories=frozenset({"Crime"})))
    assert open_page.titles() == [item.title for item in wanted]
    assert page.locator("#results-title").inner_text() == "For you in Crime"
    slider = page.get_by_label("Variety")
    slider.focus()
    for _ in range(6):
        page.keyboard.press("ArrowRight")
    assert slider.get_attribute("aria-valuetext") == page.locator("#diversity-help").inner_text() != "none: by score alone"
    varied = engine.recommend(Request(history=(position,), categories=frozenset({"Crime"}), diversity=0.6))
    open_page.until(
        "want => [...document.querySelectorAll('#results h3')].map(e => e.innerText).join('|') === want",
        "|".join(item.title for item in varied),
    )
    assert [item.title for item in varied] != [item.title for item in wanted]


def test_the_card_is_read_by_keyboard_and_says_what_is_promised_and_who_signed(open_page: Visit, live: Live) -> None:
    page, bundle = open_page.page, live.engine.bundle
    page.get_by_role("tab", name="Find").focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.id") == "tab-card"
    assert page.locator("#find").is_hidden()
    card = page.get_by_role("tabpanel", name="About the model").inner_text()
    privacy = bundle.card.privacy
    for text in (
        privacy.statement,
        "7.90",
        "10⁻⁶",
        privacy.unit,
        privacy.trust,
        bundle.digest,
        "NDCG@10",
        "0.0412",
        "0.0371 to 0.0454",
    ):
        assert text in card
    page.keyboard.press("ArrowRight")
    assert page.locator("#find").is_visible()
    assert page.locator("#card").is_hidden()


NAMELESS = """() => {
  const controls = [...document.querySelectorAll('a, button, input, select, [tabindex], [role="tab"], [role="listbox"]')];
  return controls.filter(control => control.offsetParent !== null).filter(control => {
    const by = (control.getAttribute('aria-labelledby') || '').split(' ').map(id => document.getElementById(id));
    const names = [control.getAttribute('aria-label'), ...[...by, ...(control.labels || []), control].map(e => e?.textContent)];
    return !names.some(name => name && name.trim());
  }).map(control => control.outerHTML);
}"""

BROKEN_REFERENCES = """() => {
  const ids = [...document.querySelectorAll('[id]')].map(element => element.id);
  const twice = ids.filter((id, place) => ids.indexOf(id) !== place);
  const names = ['aria-controls', 'aria-labelledby', 'aria-describedby', 'aria-activedescendant', 'for'];
  const missing = names.flatMap(name => [...document.querySelectorAll(`[${name}]`)].flatMap(
    element => element.getAttribute(name).split(' ').filter(id => !document.getElementById(id))));
  return [...twice, ...missing];
}"""

# Text with a contrast below 4.5 to 1 (WCAG 2.2, 1.4.3).
FAINT = """() => {
  const light = color => {
    const [r, g, b] = color.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255).map(
      v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const ground = element => {
    for (let e = element; e; e = e.parentElement) {
      const color = getComputedStyle(e).backgroundColor;
      if (!/rgba\\(.*, 0\\)/.test(color)) return color;
    }
    return 'rgb(255, 255, 255)';
  };
  const texts = [...document.querySelectorAll('body *')].filter(e => e.offsetParent !== null && [...e.childNodes].some(
    n => n.nodeType === 3 && n.textContent.trim()));
  return texts.map(e => {
    const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x);
    return [(a + .05) / (b + .05), e.outerHTML.slice(0, 120)];
  }).filter(([ratio]) => ratio < 4.5);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_has_a_name_stands_out_and_points_somewhere(browser: Browser, address: str, scheme: str) -> None:
    seen = visit(browser, address, color_scheme=scheme)
    page = seen.page
    seen.choose("crypt")
    page.locator("#search").press_sequentially("dragon")
    page.locator('[role="option"]').first.wait_for(timeout=WAIT)
    page.keyboard.press("ArrowDown")
    for _ in range(2):
        assert page.evaluate(NAMELESS) == []
        assert page.evaluate(BROKEN_REFERENCES) == []
        assert page.evaluate(FAINT) == []
        levels = [int(name[1]) for name in page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map(h => h.localName)")]
        assert levels[0] == 1
        assert all(below - above <= 1 for above, below in pairwise(levels))
        page.get_by_role("tab", name="About the model").click()
    snapshot = page.locator("body").aria_snapshot()
    assert '- tab "About the model" [selected]' in snapshot
    assert page.locator("#said").get_attribute("aria-live") == "polite"
    assert page.locator("html").get_attribute("lang") == "en"
    page.context.close()


def test_the_focus_goes_through_the_page_in_reading_order(open_page: Visit) -> None:
    page = open_page.page
    title = open_page.choose("crypt")
    page.evaluate("document.activeElement.blur()")
    page.locator("body").click(position={"x": 2, "y": 2})
    stops = []
    for _ in range(9):
        page.keyboard.press("Tab")
        stops.append(page.evaluate("(e => e.id || e.getAttribute('aria-label') || e.textContent)(document.activeElement)"))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", stops[-1]
    first = page.locator("#results h3").first.inner_text()
    assert stops[:8] == [
        "Skip to the search", "tab-find", "search", "category", "diversity", f"Remove {title}", "clear",
        f"Add {first} to your choices",
    ]  # fmt: skip


@pytest.mark.parametrize("width", [360, 768, 1200])
def test_nothing_sticks_out_of_a_small_screen(browser: Browser, address: str, width: int) -> None:
    seen = visit(browser, address, viewport={"width": width, "height": 780})
    seen.choose("crypt")
    seen.choose("dragon")
    for tab in ("Find", "About the model"):
        seen.page.get_by_role("tab", name=tab).click()
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
    seen.page.context.close()


def test_where_the_pool_decides_little_reasons_are_what_each_choice_changes(
    browser: Browser, tmp_path: Path, key: SigningKey
) -> None:
    bundle = shop_bundle(tmp_path / "patterns.bundle", key, text_dim=1)
    with gateway(opened(tmp_path / "patterns.bundle", key.public_key)) as address:
        seen = visit(browser, address)
        history = [bundle.catalogue.titles.index(seen.choose(typed)) for typed in ("crypt", "dragon")]
        first = Engine(bundle).recommend(Request(history=tuple(history), explain=True))[0]
        assert first.reasons[0].kind == "left out"
        values = seen.page.locator("#results > li").first.locator(".bars .value").all_inner_texts()
        typical = float(np.median(bundle.items.biases))
        told = [*(reason.contribution for reason in first.reasons), first.popularity - typical]
        assert values == [f"{value:+.2f}".replace("-", "−") for value in told]
        assert "these need not add up" in seen.page.locator("#key").inner_text()
        seen.page.context.close()


def test_a_model_without_protection_is_announced_loudly(browser: Browser, tmp_path: Path, key: SigningKey) -> None:
    shop_bundle(tmp_path / "none.bundle", key, 60, mode="none")
    with gateway(opened(tmp_path / "none.bundle", key.public_key)) as address:
        seen = visit(browser, address)
        alarm = seen.page.get_by_role("alert").filter(has_text="Trained without privacy protection")
        assert alarm.is_visible()
        seen.page.get_by_role("tab", name="About the model").click()
        assert alarm.is_visible()
        assert "Nobody whose data this model was trained on is protected." in seen.page.locator("#card").inner_text()
        seen.page.context.close()


def test_the_page_goes_on_with_a_new_bundle_that_lacks_some_choices(browser: Browser, tmp_path: Path, key: SigningKey) -> None:
    path = tmp_path / "library.bundle"
    old = shop_bundle(path, key, 600)
    live = opened(path, key.public_key)
    with gateway(live) as address:
        seen = visit(browser, address)
        gone, kept = (seen.choose(old.catalogue.titles[position]) for position in (599, 20))
        newer = shop_bundle(path, key, 500, created="2024-06-01T12:00:00+00:00")
        assert live.look()
        seen.page.get_by_label("Category").select_option("Crime")
        seen.until("want => document.getElementById('digest').textContent === want", newer.digest[:16])
        seen.settled()
        assert gone in seen.page.locator("#trouble").inner_text()
        assert seen.page.locator("#chosen span").all_inner_texts() == [newer.catalogue.titles[20]]
        crime = Request(history=(20,), categories=frozenset({"Crime"}))
        assert seen.titles() == [item.title for item in Engine(newer).recommend(crime)]
        assert kept == old.catalogue.titles[20]
        seen.page.context.close()


def test_a_picture_of_the_page(browser: Browser, address: str, tmp_path: Path) -> None:
    """Small enough for the docs; kept where ``SILOREC_SCREENSHOT`` says."""
    target = Path(os.environ.get("SILOREC_SCREENSHOT", tmp_path / "gateway.png"))
    seen = visit(browser, address, viewport={"width": 1120, "height": 800})
    for typed in ("crypt", "dragon", "harb"):
        seen.choose(typed)
    seen.page.evaluate("document.activeElement.blur()")
    seen.page.screenshot(path=str(target))
    assert target.stat().st_size < 200_000
    seen.page.context.close()
