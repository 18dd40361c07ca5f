"""The report in headless Chromium, without a network: tables are sorted and filtered, cells opened, figures read."""

import shutil

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian's package chromium)")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=[1280, 390])
def page(request, browser, example_run):
    """The page, opened without a network; whatever it asks for beyond itself or complains of fails the test."""
    context = browser.new_context(viewport={"width": request.param, "height": 900})
    context.set_offline(True)
    page = context.new_page()
    address = (example_run / "report.html").as_uri()
    asked, complaints = [], []
    page.on("request", lambda sent: asked.append(sent.url))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.goto(address)
    page.wait_for_selector("html[data-ready]", timeout=30_000)
    yield page
    assert {url for url in asked if not url.startswith(("blob:", "data:"))} == {address}
    assert complaints == []
    context.close()


def column(page, table, name):
    """Texts of a column from top to bottom."""
    names = page.locator(f"#{table} thead th").all_inner_texts()
    place = next(i for i, text in enumerate(names, 1) if text.replace("\xa0", " ").replace("\n", " ").startswith(name))
    return page.locator(f"#{table} tbody td:nth-child({place})").all_inner_texts(), place


def test_a_table_is_sorted_by_its_numbers(page):
    before, place = column(page, "results-table", "val accuracy")
    assert len(before) == 18
    page.locator(f"#results-table thead th:nth-child({place}) .dt-column-title").click()
    after, _ = column(page, "results-table", "val accuracy")
    assert sorted(before) == sorted(after)
    means = [float(text.split()[0]) for text in after]
    assert means == sorted(means)
    assert means != [float(text.split()[0]) for text in before]


def test_a_table_is_filtered_by_words_and_by_columns(page):
    page.locator("#results .dt-search input").fill("xor hybrid")
    tasks, _ = column(page, "results-table", "task")
    assert tasks == ["xor"] * 3
    page.locator("#results .dt-search input").fill("")
    _, place = column(page, "results-table", "verdict")
    page.locator(f"#results-table thead th:nth-child({place}) button").click()
    page.locator(".dtcc-list-buttons button", has_text="inside the noise").click()
    verdicts, _ = column(page, "results-table", "verdict")
    assert verdicts == ["inside the noise"] * 2


def test_a_cell_opens_and_the_way_back_leads_to_all(page):
    name = "digits-hybrid-lr=0.01-seed=2"
    article = page.locator(f"[id='cell-{name}']")
    assert not article.is_visible()
    page.locator(f"#cells-table a[href='#cell-{name}']").click()
    assert article.is_visible()
    assert not page.locator("#summary").is_visible()
    text = article.inner_text()
    for part in (
        "finished",
        "val_accuracy",
        "config.yaml",
        "max_epochs: 4",
        "better on validation rows",
        "epoch 99 of",
    ):
        assert part in text
    article.locator("text=All cells").click()
    assert page.locator("#summary").is_visible()
    assert not article.is_visible()


def test_a_failed_cell_shows_its_error(page):
    page.locator("#failed a").click()
    assert "ValueError: Found lr=-1" in page.locator(".cell:target .error").inner_text()


def test_a_figures_text_is_text(page):
    figure = page.locator("figure", has_text="val accuracy over epochs at lr = 0.01").first
    texts = figure.locator("svg text")
    assert {"epoch", "val accuracy, %", "sg", "hybrid", "lsm"} <= set(texts.all_text_contents())
    assert min(text.bounding_box()["height"] for text in texts.all() if text.text_content().strip()) > 8  # pixels


def test_the_page_itself_never_scrolls_sideways(page):
    width = page.viewport_size["width"]
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.goto(page.url.split("#")[0] + "#cell-digits-hybrid-lr=0.01-seed=2")
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_figures_ids_are_their_own(page):
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(element => element.id)")
    assert len(ids) == len(set(ids)) > 1000
