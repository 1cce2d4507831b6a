"""axe-core, asked as often as it takes to know what is there to stay."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import axe_playwright_python
from playwright.sync_api import Page

AXE = Path(axe_playwright_python.__file__).parent / "axe.min.js"
FIND = """async ([context, options, impacts]) => {
    const result = await axe.run(context, { ...options, resultTypes: ["violations"] });
    return Object.fromEntries(result.violations.filter((v) => impacts.includes(v.impact))
        .flatMap((v) => v.nodes.map((n) => [`${v.id}: ${n.target.join(" ")}`, n.failureSummary])));
}"""
LOOKS = 6
ANY = ("minor", "moderate", "serious", "critical")


def faults(
    page: Page, context: dict[str, Any], options: dict[str, Any] | None = None, impacts: Sequence[str] = ANY
) -> dict[str, str]:
    """What axe finds each time it looks, and why; `context` and `options` are those of `axe.run`.

    axe reads styles one after the other and remembers them: of a page that changes meanwhile it puts the colour of one
    moment on the background of another. A fault that is there to stay is found every time.
    """
    if not page.evaluate("Boolean(window.axe)"):
        page.add_script_tag(path=AXE)
    asked = [context, options or {}, list(impacts)]
    found: dict[str, str] = page.evaluate(FIND, asked)
    for _ in range(LOOKS - 1):
        if not found:
            break
        page.wait_for_timeout(800)
        again = page.evaluate(FIND, asked)
        found = {where: again[where] for where in found if where in again}
    return found
