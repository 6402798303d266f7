"""Measures pages in headless Chromium: when they are painted, and what axe-core says about them.

    python -m benchmarks.pages write RUN                              # seconds to write the page of a run
    python -m benchmarks.pages paint one.html other.html ...          # interleaved; milliseconds of each
    python -m benchmarks.pages axe AXE_MIN_JS one.html other.html ... # exits with 1 if a finding is serious or critical
    python -m benchmarks.pages shots FOLDER one.html other.html ...   # at 400 and 1,200 px, light and dark

All but `write` need `pip install playwright` and a Chromium in PATH; axe-core is the file `axe.min.js` of its npm
package. The tests need none of them.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

WIDTHS, SCHEMES, REPEATS = (400, 1200), ("light", "dark"), 15
_PAINT = """() => ({paint: performance.getEntriesByName('first-contentful-paint')[0].startTime, whole: window.whole})"""
_WHOLE = "!document.querySelector('noscript')"
# Notes when the last part of the page was put in, which on older pages is at the end of parsing.
_WATCH = """addEventListener('DOMContentLoaded', () => {
  window.whole = performance.now();
  const watch = new MutationObserver(() => { window.whole = performance.now(); });
  watch.observe(document.querySelector('main'), {childList: true});
});"""


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    command, *rest = arguments
    if command == "write":
        return write(Path(rest[0]))
    from playwright.sync_api import sync_playwright

    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        try:
            if command == "paint":
                return paint(browser, rest)
            if command == "axe":
                return axe(browser, Path(rest[0]), rest[1:])
            return shots(browser, Path(rest[0]), rest[1:])
        finally:
            browser.close()


def write(run: Path) -> int:
    """Prints the seconds to write the page of a run, that of reading its files included."""
    from fedelta.report.writing import write_report

    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        write_report(run, Path(folder) / "report.html")
        print(f"{run}: {time.perf_counter() - begin:.1f} s")
    return 0


def paint(browser: Any, files: Sequence[str]) -> int:
    """Prints the milliseconds to the first contentful paint, and the median until everything is there."""
    seen: dict[str, list[tuple[float, float]]] = {file: [] for file in files}
    for _ in range(REPEATS):
        for file in files:
            page = opened(browser, file, 1200, "light")
            times = page.evaluate(_PAINT)
            seen[file].append((times["paint"], times["whole"]))
            page.context.close()
    for file, times in seen.items():
        paints, wholes = (sorted(part) for part in zip(*times, strict=True))
        shown = ", ".join(f"{value:.0f}" for value in (paints[0], quantiles(paints)[0], median(paints)))
        kibibytes = Path(file).stat().st_size / 1024
        print(
            f"{file}: painted after {shown} ms (fastest, first quartile, median), whole after {median(wholes):.0f} ms, "
            f"{kibibytes:.0f} KiB"
        )
    return 0


def axe(browser: Any, script: Path, files: Sequence[str]) -> int:
    """Prints the findings on each page, light and dark, with folds open and one picture drawn by the library."""
    num_serious = 0
    for file in files:
        for scheme in SCHEMES:
            page = opened(browser, file, 1200, scheme)
            page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
            if page.locator(".live").count():
                page.locator(".live").first.hover()
                page.wait_for_timeout(1500)
            page.add_script_tag(path=str(script))
            findings = page.evaluate("axe.run()")["violations"]
            serious = [finding for finding in findings if finding["impact"] in ("serious", "critical")]
            num_serious += len(serious)
            print(f"{file}, {scheme}: {len(findings)} findings, {len(serious)} of them serious or critical")
            for finding in findings:
                print(f"  {finding['impact']}: {finding['id']}: {finding['nodes'][0]['html'][:140]}")
            page.context.close()
    return 1 if num_serious else 0


def shots(browser: Any, folder: Path, files: Sequence[str]) -> int:
    """Writes a picture of the top of each page at each width and in each colour scheme."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        for width in WIDTHS:
            for scheme in SCHEMES:
                page = opened(browser, file, width, scheme)
                clip = {"x": 0, "y": 0, "width": width, "height": 1500}
                page.screenshot(path=folder / f"{Path(file).stem}-{width}-{scheme}.png", clip=clip, full_page=True)
                page.context.close()
    return 0


def opened(browser: Any, file: str, width: int, scheme: str) -> Any:
    """The page, once everything is there."""
    page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
    page.add_init_script(_WATCH)
    page.goto(Path(file).resolve().as_uri())
    page.wait_for_function(_WHOLE)
    page.wait_for_timeout(300)
    return page


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
