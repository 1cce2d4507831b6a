"""Takes the pictures of the README from the real studio, in a real browser.

    python launch.py demo --workspace W      (or any workspace with a finished run)
    .venv/bin/python assets/screenshots/make.py W [--all OUT]

Without --all the README's pictures are replaced: every page at 1440 pixels, English and Chinese. With --all every page
is taken in light and dark, English and Chinese, 1440 and 900 pixels wide, into OUT, to be looked at.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from studio import chat_server, hardware
from studio.presets import ROOT

HERE = Path(__file__).resolve().parent
PAGES = ("home", "data", "train", "monitor", "export", "chat")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
SETTLE_MS = 1500


@contextmanager
def studio(workspace: Path) -> Iterator[str]:
    """A studio on a free port; yields its address."""
    port = chat_server.free_port(7900)
    argv = [sys.executable, "-m", "studio.cli", "ui", "--workspace", str(workspace), "--port", str(port)]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    address = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                urllib.request.urlopen(f"{address}/api/health").read()
                break
            except OSError:
                time.sleep(0.3)
        yield address
    finally:
        process.terminate()
        process.wait()


def open_tab(page: Page, name: str) -> None:
    """Go to a tab and let it draw."""
    page.locator(f'button[role=tab][data-tab-id="{name}"]').click()
    page.wait_for_timeout(SETTLE_MS)
    if name == "data":
        page.locator("#data-name input, #data-name textarea").first.fill("Nova")
        page.locator("#data-author input, #data-author textarea").first.fill("Class 3B")
        page.wait_for_timeout(SETTLE_MS)
    if name == "chat":  # both models have to load first
        page.locator(".chip-ask").first.click(timeout=120_000)
        for side in ("left", "right"):  # speed is told when an answer is whole
            page.locator(f"#chat-pair .reply.{side} .foot .num").last.wait_for(timeout=120_000)
        page.wait_for_timeout(SETTLE_MS)
    page.evaluate("window.scrollTo(0, 0)")


def take(browser: Browser, address: str, look: tuple[str, str, int], out: dict[str, Path]) -> None:
    """Every page of `out` in one look (language, theme, width)."""
    language, theme, width = look
    context = browser.new_context(
        viewport={"width": width, "height": 900}, locale=language, color_scheme="dark" if theme == "dark" else "light"
    )
    page = context.new_page()
    page.goto(f"{address}/?lang={language}&__theme={theme}")
    page.locator('button[role=tab][data-tab-id="home"]').wait_for()
    page.wait_for_timeout(2 * SETTLE_MS)
    for name, path in out.items():
        open_tab(page, name)
        page.screenshot(path=path)
    context.close()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path, help="a workspace with a finished run")
    parser.add_argument("--all", type=Path, metavar="OUT", help="take every look into this folder")
    parser.add_argument("--pages", nargs="*", default=PAGES, choices=PAGES)
    arguments = parser.parse_args()
    looks = [("en", "light", 1440), ("zh-CN", "light", 1440)]
    if arguments.all:
        arguments.all.mkdir(parents=True, exist_ok=True)
        looks = list(itertools.product(("en", "zh-CN"), ("light", "dark"), (1440, 900)))
    with studio(arguments.workspace) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=hardware.find_chromium(), args=FLAGS)
        for look in looks:
            suffix = "-zh" if look[0] != "en" else ""
            names = {p: HERE / f"{p}{suffix}.png" for p in arguments.pages}
            if arguments.all:
                names = {p: arguments.all / f"{p}-{look[0]}-{look[1]}-{look[2]}.png" for p in arguments.pages}
            take(browser, address, look, names)
        browser.close()


if __name__ == "__main__":
    main()
