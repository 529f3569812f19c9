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

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e .[test]")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("ssh") is None, reason="needs the OpenSSH client"),
    pytest.mark.xdist_group("whole_loop"),  # one worker, for one demo
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
