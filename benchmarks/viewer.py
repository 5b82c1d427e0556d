"""The viewer in Chromium, over loopback: how soon a picture is there, and how fluently one scrubs.

Browser, server and whatever else runs share the machine's cores. The demo's store is small; the other one has an
episode of Pi0's size (18 layers of 8 heads, 16 x 16 patches) with 23 keyframes.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Browser, CDPSession, Page, sync_playwright

from .measure import Figure, Setting
from .replay import ingest_store, shape_of
from .service import TOKEN, server_of
from .slices import KEYFRAMES

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SCRUB = """async seconds => {
  const slider = document.querySelector("input[aria-label=Keyframe]");
  const canvases = [...document.querySelectorAll("canvas.picture")];
  const frame = () => new Promise(requestAnimationFrame);
  const waits = [];
  const began = performance.now();
  let drawn = 0;
  while (performance.now() - began < 1000 * seconds) {
    const wanted = String((Number(slider.value) + 1) % (Number(slider.max) + 1));
    slider.value = wanted;
    const asked = performance.now();
    slider.dispatchEvent(new Event("input", {bubbles: true}));
    while (canvases.some(c => c.dataset.drawn !== wanted)) await frame();
    waits.push(performance.now() - asked);
    drawn++;
    await frame();
  }
  waits.sort((a, b) => a - b);
  return [1000 * drawn / (performance.now() - began), waits[Math.floor(0.95 * waits.length)]];
}"""
"""Ask for the next keyframe once the last one is on every canvas; a screen shows at most 60 a second."""


def run(setting: Setting) -> list[Figure]:
    count = 3 if setting.toy else KEYFRAMES
    large = ingest_store(setting.directory, count, **shape_of(setting.toy))
    stores = {"Pi0's size": large}
    if not setting.toy:
        stores = {"demo": _demo(setting.directory / "demo"), **stores}
    found = next(path for name in BROWSERS if (path := shutil.which(name)))
    figures = []
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"]
        browser = playwright.chromium.launch(executable_path=found, args=arguments)
        for name, root in stores.items():
            with server_of(root) as ((host, port), _):
                figures += _measure(browser, f"http://{host}:{port}", name, setting)
        browser.close()
    return figures


def _measure(browser: Browser, url: str, store: str, setting: Setting) -> list[Figure]:
    first, linked, thread = [], [], []
    link = ""
    for _ in range(1 + setting.repeats(5)):
        page, _ = _open(browser, f"{url}/?token={TOKEN}")
        first.append(_first_picture(page))
        # from the overview to its first episode
        page.locator(".glimpse").first.click()
        page.wait_for_url("**episode=**")
        link = page.url.replace("/#", f"/?token={TOKEN}#")
        page.context.close()
    for _ in range(setting.repeats(5)):
        page, clock = _open(browser, link)
        linked.append(_first_picture(page))
        thread.append(_busy(clock))
        page.context.close()
    page, clock = _open(browser, f"{link}&layer=1&head=0")
    _first_picture(page)
    page.wait_for_timeout(300 if setting.toy else 3000)  # images are decoded ahead
    seconds, before = 0.3 if setting.toy else 5, _busy(clock)
    rate, slowest = page.evaluate(SCRUB, seconds)
    spent = (_busy(clock) - before) / (rate * seconds)
    page.context.close()
    grids = []
    for grid in ("heads", "layers"):
        page, clock = _open(browser, f"{link}&view=heads&grid={grid}")
        _first_picture(page)
        page.wait_for_timeout(300 if setting.toy else 3000)
        tiles, before = page.locator(".tile").count(), _busy(clock)
        turned, _ = page.evaluate(SCRUB, seconds)
        each = (_busy(clock) - before) / (turned * seconds)
        about = f"{store}: small multiples of all {tiles} {grid}"
        grids += [
            Figure(f"{about}, keyframes", turned, "1/s", aim=">= 10"),
            Figure(f"{about}, CPU of the page's thread a keyframe", each, "ms", aim="<= 100"),
        ]
        page.context.close()
    return [
        *grids,
        Figure(f"{store}: first picture, new browser profile", statistics.median(first[1:]), "ms", aim="<= 1000"),
        Figure(f"{store}: the same, from a link", statistics.median(linked), "ms", aim="<= 1000"),
        Figure(f"{store}: CPU of the page's thread for it", statistics.median(thread), "ms"),
        Figure(f"{store}: scrubbing, two cameras", rate, "1/s", aim=">= 20", note="a screen shows 60"),
        Figure(f"{store}: keyframe asked to pictures drawn, p95", slowest, "ms"),
        Figure(f"{store}: CPU of the page's thread a keyframe", spent, "ms", aim="<= 50"),
    ]  # fmt: skip


def _open(browser: Browser, address: str) -> tuple[Page, CDPSession]:
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    clock = context.new_cdp_session(page)
    clock.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.goto(address)
    return page, clock


def _first_picture(page: Page) -> float:
    """Milliseconds from the beginning of the navigation."""
    page.locator("canvas[data-drawn]").first.wait_for(timeout=60_000)
    mark = "performance.getEntriesByName('first-picture')[0]?.startTime ?? 0"
    while not (found := page.evaluate(mark)):
        page.wait_for_timeout(20)
    return float(found)


def _busy(clock: CDPSession) -> float:
    """Milliseconds of CPU that the page's main thread has used."""
    values = {m["name"]: m["value"] for m in clock.send("Performance.getMetrics")["metrics"]}
    return 1000 * float(values["TaskDuration"])


def _demo(folder: Path) -> Path:
    subprocess.run(
        [sys.executable, "-m", "attnstore", "demo", "--out", str(folder)],
        check=True, capture_output=True,
    )  # fmt: skip
    return folder / "demo.attn"
