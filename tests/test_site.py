"""The documentation site: built without a warning, loads nothing from elsewhere, fits a telephone, and is searched."""

import functools
import http.server
import os
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import urlparse

import pytest

ROOT = Path(__file__).parent.parent
CHROMIUM = Path("/usr/bin/chromium")
HEIGHT = 900
WIDTHS = (1280, 390)
MADE = 8
FRAMES = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
TABLES_CUT = """
    [...document.querySelectorAll('.md-typeset__scrollwrap')].filter(e => e.scrollWidth > e.clientWidth + 1).length
"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", "docs/mkdocs.yml"]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run([*command, "--site-dir", folder], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return folder


def pages(site):
    return sorted(str(path.parent.relative_to(site)) for path in site.rglob("index.html"))


def opened(site):
    """The pages that a browser opens: all that were written by hand, and the longest made by the template."""
    made = sorted(site.glob("api/*/index.html"), key=lambda path: path.stat().st_size)[:-MADE]
    skipped = {str(path.parent.relative_to(site)) for path in made} - {"api"}
    return [name for name in pages(site) if name not in skipped]


def test_every_page_is_there(site):
    names = {path.stem for path in (ROOT / "docs/pages").glob("*.md")} - {"index"}
    assert names | {"."} <= set(pages(site))
    callback = (site / "api/ConvexReconstruction/index.html").read_text()
    assert "gaussian_orthogonal" in callback  # literal values are listed
    assert '<code>relaxation</code>: <code>"auto"</code> or a number' in callback
    assert '<code>solver</code>: <code>"own"</code>' in (site / "api/solve/index.html").read_text()
    assert "&gt;&gt;&gt;" in callback  # examples are code
    assert "<blockquote>" not in callback
    method = (site / "method/index.html").read_text()
    assert method.count("<svg role=") >= 20
    assert "arithmatex" not in method


def test_a_term_is_linked_to_the_glossary_once(site):
    text = (site / "training/index.html").read_text()
    assert text.count("glossary/#readout") == text.count("glossary/#dictionary") == 1


@pytest.fixture(scope="module")
def address(site):
    handler = functools.partial(Quiet, directory=site)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM.exists():
        pytest.skip(f"There is no {CHROMIUM}")
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def test_pages_fit_and_load_nothing_from_elsewhere(site, address, browser):
    page = browser.new_page(viewport={"width": WIDTHS[0], "height": HEIGHT})
    asked, errors = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    shots = os.environ.get("SCREENSHOTS")  # a folder for a picture of each page, to be looked at
    wide, tables, long = [], [], []
    for name in opened(site):
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": HEIGHT})
            if width == WIDTHS[0]:
                page.goto(f"{address}/{name}/".replace("/./", "/"))
            page.evaluate(FRAMES)  # what moves from one width to the other has arrived
            if page.evaluate("document.documentElement.scrollWidth") > width:
                wide.append((name, width))
            height = page.evaluate("document.querySelector('.md-content').scrollHeight")
            if height > 3 * HEIGHT and not page.locator(".md-nav--secondary .md-nav__link").count():
                long.append((name, width))
            if width == WIDTHS[0]:  # on a telephone a table may be scrolled by itself
                tables += [name] * page.evaluate(TABLES_CUT)
            if shots:
                page.screenshot(path=f"{shots}/{name.replace('/', '-')}-{width}.png", full_page=True)
    page.close()
    assert (wide, tables, long, errors) == ([], [], [], [])
    assert {urlparse(url).netloc for url in asked} == {urlparse(address).netloc}


@pytest.mark.parametrize(
    ("word", "expected"),
    [("dead", "doctor"), ("gap", "glossary"), ("resume", "running"), ("GPU", "gpu"), ("ablation", "ablation")],
)
def test_search_finds(address, browser, word, expected):
    page = browser.new_page(viewport={"width": 1280, "height": HEIGHT})
    page.goto(f"{address}/?q={word}", wait_until="networkidle")
    page.wait_for_selector(".md-search-result__link", timeout=20_000)
    found = [link.get_attribute("href") for link in page.locator(".md-search-result__link").all()]
    page.close()
    assert any(f"/{expected}" in link for link in found), found
