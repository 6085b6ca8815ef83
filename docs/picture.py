"""The README's picture of a report: `python docs/picture.py curate-demo/report.html`, with the extra `browser`.

The demo's report, in a browser of 1200 px, from its top to the first patches, in 256 colours.
"""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image

_WIDTH, _HEIGHT = 1200, 1500  # px of the page
_OUT = Path(__file__).parent / "report.png"


def main(page: Path) -> None:
    """Write docs/report.png. It needs Chromium, which Playwright finds or Debian's package `chromium` brings."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=shutil.which("chromium"))
        tab = browser.new_page(viewport={"width": _WIDTH, "height": _HEIGHT}, color_scheme="light")
        tab.goto(page.resolve().as_uri())
        tab.wait_for_load_state("load")
        picture = tab.screenshot()
        browser.close()
    Image.open(io.BytesIO(picture)).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(_OUT, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
