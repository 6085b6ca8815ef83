"""The report in a real browser: opened from its file it asks for nothing, the console is silent, all of it works.

Needs Playwright (`pip install -e .[browser]`) and a Chromium (`apt-get install chromium`, or CHROMIUM=/path/to/it).
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from curate.duplication import duplicates
from curate.ingestion import ingest
from curate.reporting import report
from curate.scoring import score
from curate.selection import select

pytestmark = pytest.mark.slow

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e .[browser]")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
HOSTILE = (
    "<script>window.pwned = 1<&sol;script>.png",
    "\"'><img src=x onerror=window.pwned=1>.png",
    "$x$\u202egnp.png",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium, or CHROMIUM=/path/to/it")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory, write_photos: Callable[..., Path]) -> Path:
    """A report of three manifests of a store with hostile names, a refused file and a near-duplicate."""
    folder = tmp_path_factory.mktemp("browser")
    photos = write_photos(folder / "photos", [(150, 200), (120, 150), (97, 130), (144, 144)])
    shutil.copy(photos / "003.jpg", photos / "copy.jpg")
    for file, name in zip(sorted(photos.iterdir()), HOSTILE, strict=False):
        file.rename(photos / name)
    ingest([photos], folder / "store", patch=48, step=24)
    duplicates(folder / "store")
    score(folder / "store", ["sobel", "laplacian"])
    names = ("refined", "<b onclick=window.pwned=1>asc", "random")
    for name, strategy, by in zip(names, ("refined", "asc", "random"), ("sobel", "sobel", None), strict=True):
        select(folder / "store", strategy, by=by).save(folder / f"{name}.parquet")
    report([folder / f"{name}.parquet" for name in names], folder / "report.html")
    return folder / "report.html"


@pytest.fixture(params=["light", "dark"])
def page(request: pytest.FixtureRequest, browser: Any, page_file: Path) -> Iterator[Any]:
    """The page, and a check at the end that it was quiet: no request but for itself, nothing on the console."""
    opened = browser.new_page(color_scheme=request.param, viewport={"width": 1200, "height": 900})
    heard: list[str] = []
    opened.on("request", lambda r: heard.append(f"request {r.url[:100]}") if not r.url.startswith("data:") else None)
    opened.on("console", lambda message: heard.append(f"console {message.text}"))
    opened.on("pageerror", lambda error: heard.append(f"error {error}"))
    opened.goto(page_file.as_uri())
    yield opened
    assert heard == [f"request {page_file.as_uri()}"[:108]] and opened.evaluate("window.pwned") is None
    opened.close()


def test_names_are_text(page: Any) -> None:
    text = page.evaluate("document.body.textContent")
    assert "<script>window.pwned = 1<&sol;script>.png" in text
    assert "\"'><img src=x onerror=window.pwned=1>.png" in text
    assert "$x$\\u202egnp.png" in text and "\u202e" not in text
    assert "<b onclick=window.pwned=1>asc" in text
    assert page.evaluate("document.scripts.length") == 2
    assert page.evaluate("document.querySelectorAll('[onclick], [onerror]').length") == 0


def test_every_picture_is_there(page: Any) -> None:
    count, broken = page.evaluate(
        "[document.images.length, Array.from(document.images).filter(i => !i.complete || !i.naturalWidth).length]"
    )
    assert count > 30 and broken == 0


def test_every_link_leads_somewhere(page: Any) -> None:
    links = page.locator("nav a")
    assert links.count() == 6
    for index in range(links.count()):
        links.nth(index).click()
        target = page.locator(links.nth(index).get_attribute("href"))
        box = target.bounding_box()
        assert box is not None and box["y"] < 900 and box["y"] + box["height"] > 0


def test_a_patch_shows_its_place(page: Any) -> None:
    viewer = page.locator("#viewer")
    for index in (0, 5):
        button = page.locator(".tile button").nth(index)
        button.click()
        assert viewer.is_visible()
        y, x, size, *_ = button.get_attribute("data-box").split()
        rect = viewer.locator("rect").last
        assert [rect.get_attribute(name) for name in ("x", "y", "width", "height")] == [x, y, size, size]
        assert f"y {y}, x {x}, {size}" in viewer.locator("dl").inner_text()
        photo = viewer.locator("svg image").get_attribute("href")
        assert photo.startswith("data:image/webp;base64,")
        if index:
            page.keyboard.press("Escape")
        else:
            viewer.get_by_role("button", name="Close").click()
        assert not viewer.is_visible()


def test_the_colours_change_and_change_back(page: Any) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    before, button = page.evaluate(ground), page.locator("#theme")
    button.click()
    assert page.evaluate(ground) != before
    button.click()
    assert page.evaluate(ground) == before


def test_maps_answer_to_their_controls(page: Any) -> None:
    heat = page.locator("#maps .heat").first
    page.locator("#heat").fill("0")
    assert heat.evaluate("e => getComputedStyle(e).opacity") == "0"
    page.locator("#heat").fill("100")
    assert heat.evaluate("e => getComputedStyle(e).opacity") == "1"
    assert page.locator(".ramp i").evaluate("e => getComputedStyle(e).opacity") == "1"  # the legend goes with it
    for index in range(3):
        box, border = page.locator(f'[data-show="{index}"]'), page.locator(f"#maps .m{index}").first
        for _ in range(2):
            shown = border.evaluate("e => getComputedStyle(e).display") != "none"
            assert box.is_checked() == shown
            box.click()


def test_the_table_of_images_sorts_and_filters(page: Any) -> None:
    for summary in page.locator("summary").all():
        summary.click()
    assert page.locator("details[open]").count() == page.locator("details").count() >= 2
    rows = page.locator("#images tbody tr")
    heading = page.locator("#images th").nth(2)
    for order in ("descending", "ascending"):
        heading.locator("button").click()
        assert heading.get_attribute("aria-sort") == order
        numbers = [float(cell.get_attribute("data-v")) for cell in page.locator("#images tbody td:nth-child(3)").all()]
        assert numbers == sorted(numbers, reverse=order == "descending")
    page.locator("#images th button").first.click()
    page.locator("#find").fill("ONERROR")
    assert [row.is_visible() for row in rows.all()].count(True) == 1
    page.locator("#find").fill("")
    assert all(row.is_visible() for row in rows.all())


@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_is_wider_than_the_window(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", [360, 400, 1200])
def test_every_section_can_be_chosen_at_any_width(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    for item in page.locator("nav a, nav button").all():
        box = item.bounding_box()
        assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= width
    nav = page.locator("nav > div")
    assert nav.evaluate("e => e.scrollWidth <= e.clientWidth")


def test_maps_of_a_row_are_of_one_height_and_leave_no_hole(page: Any) -> None:
    page.set_viewport_size({"width": 1280, "height": 900})
    boxes = [item.bounding_box() for item in page.locator("#maps svg").all()]
    rows: dict[int, list[dict[str, float]]] = {}
    for box in boxes:
        rows.setdefault(round(box["y"]), []).append(box)
    for row in rows.values():
        assert max(box["height"] for box in row) - min(box["height"] for box in row) < 2
        gaps = [b["x"] - a["x"] - a["width"] for a, b in pairwise(sorted(row, key=lambda box: box["x"]))]
        assert all(gap < 30 for gap in gaps)


def test_captions_are_of_two_lines(page: Any) -> None:
    for width in (400, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.locator(".tile figcaption").first.is_visible()
        heights = page.evaluate(
            "Array.from(document.querySelectorAll('.tile figcaption')).filter(e => e.offsetHeight)"
            ".map(e => e.offsetHeight / parseFloat(getComputedStyle(e).lineHeight))"
        )
        assert len(heights) > 20 and max(heights) < 2.1


def test_paper_is_light_and_has_no_controls(page: Any) -> None:
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(254, 254, 254)"
    assert not page.locator("nav").is_visible() and not page.locator("#heat").is_visible()
    assert page.locator(".tile img").first.is_visible()


def test_without_scripts_all_but_the_clicks_is_there(browser: Any, page_file: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    opened = context.new_page()
    opened.goto(page_file.as_uri())
    assert opened.locator("noscript").is_visible()
    assert opened.locator(".tile img").first.is_visible() and opened.locator(".figures svg").first.is_visible()
    context.close()


def test_the_readme_s_picture_can_be_made_again(page_file: Path, tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "docs" / "picture.py"
    program = (
        "import runpy, sys; from pathlib import Path; runpy.run_path(sys.argv[1])['main'](*map(Path, sys.argv[2:]))"
    )
    command = [sys.executable, "-c", program, script, page_file, tmp_path / "report.png"]
    subprocess.run(command, check=True, env={**os.environ, "CHROMIUM": str(CHROMIUM)})
    with Image.open(tmp_path / "report.png") as made, Image.open(script.with_name("report.png")) as shown:
        assert (made.format, made.width) == (shown.format, shown.width)
        assert made.height > 800 and shown.height > 1000
