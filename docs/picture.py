"""The README's picture of a report: `python docs/picture.py curate-demo/report.html`, with the extra `browser`.

Of the demo's report, in a browser: its head with the first score, the hardest patches, two of its maps, one below the
other, in 256 colours.
"""

import io
import os
import shutil
import sys
from pathlib import Path

from PIL import Image

_WIDTH = 1000  # px
_OUT = Path(__file__).parent / "report.png"
# What is shown, each from the top of one element to the bottom of another.
_PARTS = (
    (".eyebrow", "header .choices"),
    ("#scores .figures", "#scores .figures"),
    ("#patches h3", "#patches .tile:nth-child(14), #patches .tile:last-child"),
    ("#maps figure", "#maps figure:nth-child(2), #maps figure:last-child"),
)
_GAP = 16  # px above each


def main(page: Path, out: Path = _OUT) -> None:
    """Write the picture. It needs Chromium: Debian's package, or CHROMIUM=/path/to/it, or Playwright's own."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as engine:
        chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
        browser = engine.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": _WIDTH, "height": 1000}, color_scheme="light")
        tab.goto(page.resolve().as_uri())
        tab.add_style_tag(content="nav { display: none !important }")
        pieces = []
        for first, last in _PARTS:
            above, below = (tab.locator(name).first.bounding_box() for name in (first, last))
            assert above and below, f"the page has no {first} or {last}"
            top = max(above["y"] - _GAP, 0)
            clip = {"x": 0, "y": top, "width": _WIDTH, "height": below["y"] + below["height"] - top}
            pieces.append(Image.open(io.BytesIO(tab.screenshot(full_page=True, clip=clip))).convert("RGB"))
        browser.close()
    whole = Image.new("RGB", (_WIDTH, sum(piece.height for piece in pieces)), "white")
    height = 0
    for piece in pieces:
        whole.paste(piece, (0, height))
        height += piece.height
    whole.quantize(256).save(out, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
