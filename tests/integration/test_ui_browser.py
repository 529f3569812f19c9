"""The page in a headless Chromium: a whole run on the embedded host, by mouse and by keyboard."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ui_fakes import RunningPage, running_page
from ui_soaks import PNG, document, keep, record_name, standing

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e .[test]")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("ssh") is None, reason="needs the OpenSSH client"),
]

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MINUTE = 60_000  # milliseconds


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as runs:
        found = next(filter(None, map(shutil.which, NAMES)), runs.chromium.executable_path)
        if not Path(found).exists():
            pytest.skip("needs Chromium: apt-get install chromium, or playwright install chromium")
        as_root = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium has no sandbox for root
        browser = runs.chromium.launch(executable_path=found, args=as_root)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(checkout, demo) -> Iterator[str]:
    """The page of a checkout whose embedded host has a pack, and is not started."""
    assert checkout.invoke("remote.down").code == 0
    argv = [sys.executable, "-m", "invoke", "ui", "--no-open", "--json"]
    process = subprocess.Popen(argv, cwd=checkout.path, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    text = ""
    while not text.endswith("}\n"):
        text += process.stdout.readline()
    yield json.loads(text)["url"]
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    process.stdout.close()


@pytest.fixture
def complaints() -> list[str]:
    """What the browser's console said that is no praise."""
    return []


@pytest.fixture
def page(browser, address: str, complaints: list[str]) -> Iterator[playwright.Page]:
    yield from opened(browser, address, complaints)


def opened(browser, address: str, complaints: list[str]) -> Iterator[playwright.Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    page = context.new_page()
    page.set_default_timeout(MINUTE)
    page.on(
        "console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(address)
    page.wait_for_url("**/")
    page.wait_for_selector("#host-loopback[data-state]:not([data-state=unknown])")
    yield page
    context.close()


def host_is(page: playwright.Page, state: str) -> None:
    page.wait_for_selector(f"#host-loopback[data-state={state}]", timeout=2 * MINUTE)


def test_a_whole_run_by_clicks_ends_in_the_history(
    page: playwright.Page, complaints: list[str], demo
) -> None:
    page.wait_for_selector("table.runs tbody tr")
    before = page.locator("table.runs tbody tr").count()
    host_is(page, "down")
    page.click("#up-loopback")
    host_is(page, "idle")

    page.click("#serve-loopback")
    host_is(page, "serving")
    assert "leanstack/demo-5m" in page.inner_text("#host-loopback") or "tiny-cpu" in page.inner_text(
        "#host-loopback"
    )

    page.select_option("#right-system", "leanserve")
    page.select_option("#side-order", "turns")
    page.select_option("#side-tokens", "64")
    page.click("#side-start")
    for side in ("left", "right"):
        page.wait_for_selector(f"#{side}-said:has-text('ended after 64 tokens')")
        assert len(page.inner_text(f"#{side}-answer")) > 20
    assert page.inner_text("#left-answer") == page.inner_text("#right-answer")

    page.select_option("#measure-profile", "decode_64_256")
    page.click("#measure-start")
    page.wait_for_selector("#dock[data-state=running]")
    page.click("#dock-toggle")
    page.wait_for_selector("#dock-log:has-text('round')")
    assert page.get_attribute("#measure-start", "aria-disabled") == "true"
    page.click("#compare-start", force=True)
    page.wait_for_selector("#measure-said:has-text('one operation at a time')")
    page.wait_for_selector("#dock[data-state=done]", timeout=3 * MINUTE)
    page.wait_for_selector(f"table.runs tbody tr:nth-child({before + 1})")

    page.click("#stop-loopback")
    host_is(page, "idle")
    page.click("table.runs tbody tr:first-child a")
    page.wait_for_selector("img.plot")
    assert "decode_64_256 on loopback" in page.inner_text("h1")
    assert "generated tokens/s" in page.inner_text("table") and "exploratory" in page.inner_text(".facts")
    assert page.evaluate("() => document.querySelector('img.plot').naturalWidth") > 100
    assert [said for said in complaints if "409" not in said] == [], "but for the one that was refused"


def test_a_verb_that_fails_shows_its_message_and_its_fix(page: playwright.Page, checkout) -> None:
    packs = checkout.path / ".lean" / "loopback" / "home" / "lean" / "packs"
    packs.rename(packs.with_name("away"))
    try:
        assert checkout.invoke("remote.up").code == 0
        page.click("#hosts-again")
        host_is(page, "idle")
        page.click("#serve-loopback")
        page.wait_for_selector("#dock[data-state=failed]")
        typed = checkout.invoke("remote.serve", "--json")
        assert typed.document["error"]["message"] in page.inner_text("#dock-end")
    finally:
        packs.with_name("away").rename(packs)


def test_the_page_is_used_by_keyboard_alone(page: playwright.Page) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.id") == "hosts-again"
    seen = set()
    while True:
        page.keyboard.press("Tab")
        if page.evaluate("() => document.activeElement === document.body"):  # past the last one
            break
        seen.add(page.evaluate("() => document.activeElement.id"))
        outline = page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", "focus is always seen"
    assert seen >= {"measure-start", "compare-start", "side-prompt", "side-start", "left-system"}
    assert seen >= {"soak-host", "soak-plan", "soak-start", "soak-resume", "soak-where"}
    assert seen & {"up-loopback", "serve-loopback"}
    unnamed = """() => [...document.querySelectorAll('button, select, textarea, a')].filter(
        (one) => one.checkVisibility() && !(one.labels?.length || one.ariaLabel || one.textContent.trim()))"""
    assert page.evaluate(unnamed) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_overflows_on_a_narrow_or_a_wide_screen(
    page: playwright.Page, scheme: str, width: int
) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    page.wait_for_selector("table.runs tbody tr")
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    red, green, blue = page.evaluate(
        "() => getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).slice(0, 3).map(Number)"
    )
    assert (red + green + blue > 600) == (scheme == "light")


def test_without_the_cookie_there_is_no_page(browser, address: str) -> None:
    context = browser.new_context()
    answer = context.new_page().goto(address.partition("/enter")[0])
    assert answer.status == 401
    context.close()


# Soaks: prepared records, and verbs that are a small script


@pytest.fixture
def soaking(tmp_path: Path) -> Iterator[RunningPage]:
    """A page over 100 whole records, and a newer one that was broken."""
    with running_page(tmp_path) as running:
        for second in range(100):
            keep(tmp_path / "results", document(record_name(second)), record_name(second))
        keep(tmp_path / "results", b"{", record_name(200))
        (tmp_path / "standing.json").write_text(json.dumps(standing()))
        (tmp_path / "soak.lines").write_text(
            "soak 20261121T100000.000Z-quick: 4 arms, quality, conversations\n"
            "arm whole: its phases are done\n"
            "arm twin: conversations, 2 of 5 replays done\n"
            "arm twin: conversations, replay 3 of 5, about 12 min left\n"
        )
        yield running


@pytest.fixture
def soak_page(browser, soaking: RunningPage, complaints: list[str]) -> Iterator[playwright.Page]:
    yield from opened(browser, soaking.url, complaints)


def rows(page: playwright.Page, table: str) -> list[str]:
    return [" ".join(text.split()) for text in page.locator(f"#soak {table} tbody tr").all_inner_texts()]


def test_the_newest_soak_that_can_be_read_is_shown_and_the_broken_one_is_named(
    soak_page: playwright.Page, complaints: list[str]
) -> None:
    page = soak_page
    page.wait_for_selector("#soak table.verdicts")
    whole, twin, split4, damaged = rows(page, "table.verdicts")
    assert "baseline" in whole and "keep opt-in" in twin
    assert "default candidate" in split4 and "rule: wall gain" in split4 and "6.80 % to" in split4
    assert "investigate" in damaged and "damaged on purpose: weights perturbed" in damaged
    assert f"{record_name(200)}/soak.json: not JSON" in page.inner_text("#soak-verdicts .problem")
    assert page.locator("#soak-record option").count() == 101
    page.locator("#soak img").scroll_into_view_if_needed()
    page.wait_for_function("() => document.querySelector('#soak img').naturalWidth > 0")
    page.select_option("#soak-record", record_name(7))
    page.wait_for_selector(f"#soak a[href$='{record_name(7)}/report.md']")
    assert page.evaluate("() => document.activeElement.id") == "soak-record"
    assert complaints == []


def test_an_incomplete_soak_says_so_and_what_it_says_is_never_markup(
    soak_page: playwright.Page, soaking: RunningPage, complaints: list[str]
) -> None:
    page = soak_page
    lacks = {
        "complete": False,
        "why_not": ["split4: <img src=x onerror=alert(1)>"],
        "verdicts": [],
        "summaries": [],
    }
    keep(soaking.folder / "results", document(record_name(300), **lacks), record_name(300))
    page.click("#soak-again")
    page.wait_for_selector("#soak .problem:has-text('This soak is incomplete.')")
    assert "<img src=x onerror=alert(1)>" in page.inner_text("#soak .problem.warn")
    assert all("no verdict" in row for row in rows(page, "table.verdicts")) and complaints == []


def test_a_soak_is_started_watched_and_detached_by_keyboard(
    soak_page: playwright.Page, soaking: RunningPage, complaints: list[str]
) -> None:
    page = soak_page
    page.wait_for_selector("#soak table.verdicts")
    page.focus("#soak-host")
    for name in ("soak-plan", "soak-start"):
        page.keyboard.press("Tab")
        assert page.evaluate("() => document.activeElement.id") == name
    page.keyboard.press("Enter")
    page.wait_for_selector(".soak-now:has-text('twin: conversations, replay 3 of 5')")
    assert "about 12 min left" in page.inner_text(".soak-now")
    assert "done" in rows(page, ".soak-grid")[0] and "2 of 5" in rows(page, ".soak-grid")[1]

    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # Resume, which the page refuses while the soak runs
    page.wait_for_selector("#soak-said:has-text('one operation at a time')")
    page.reload()
    page.wait_for_selector(".soak-now:has-text('twin: conversations, replay 3 of 5')")

    assert page.inner_text("#dock-cancel") == "Detach"
    assert "invoke remote.jobs --host loopback --stop soak" in page.inner_text("#soak-progress")
    page.focus("#dock-cancel")
    page.keyboard.press("Enter")
    page.wait_for_selector("#dock[data-state=cancelled]")
    assert page.inner_text("#dock-state").startswith("detached")
    assert "The soak goes on." in page.inner_text("#dock-end") and "--follow soak" in page.inner_text(
        "#dock-end"
    )
    assert "it goes on there" in page.inner_text("#soak-progress")

    page.focus("#soak-where")
    page.keyboard.press("Enter")
    page.wait_for_selector(".soak-now:has-text('not finished')")
    assert "HTTP 500: the engine is gone" in rows(page, ".soak-grid")[2]
    words = [json.loads(line)[0] for line in (soaking.folder / "argv.jsonl").read_text().splitlines()]
    assert words.count("remote.soak") == 2
    assert [said for said in complaints if "409" not in said] == [], "but for the one that was refused"


def test_a_soak_that_ends_shows_its_verdicts(soak_page: playwright.Page, soaking: RunningPage) -> None:
    page = soak_page
    page.click("#soak-resume")
    page.wait_for_selector(".soak-now:has-text('twin: conversations')")
    folder = keep(soaking.folder / "results", document(record_name(300)), record_name(300))
    assert (folder / "soak.png").read_bytes() == PNG
    (soaking.folder / "soak.end").write_text(f"results/v1/loopback/soak/{record_name(300)}")
    page.wait_for_selector("#dock[data-state=done]")
    page.wait_for_selector(f"#soak a[href$='{record_name(300)}/report.md']")
    page.click("#dock-run")
    assert page.url.endswith("#soak-verdicts")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_the_tables_of_a_soak_fit_a_narrow_and_a_wide_screen(
    soak_page: playwright.Page, scheme: str, width: int
) -> None:
    page = soak_page
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    page.click("#soak-where")
    page.wait_for_selector("#soak .soak-grid")
    page.wait_for_selector("#soak-verdicts table.verdicts")
    page.click("#soak-progress summary:has-text('What would be said')")
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    wider = """() => [...document.querySelectorAll('#soak .scroll')].filter(
        (one) => one.checkVisibility() && one.scrollWidth > one.clientWidth + 1).length"""
    assert page.evaluate(wider) == 0
