"""The built book as a reader meets it: every page in headless Chromium, served and from disk."""

import fcntl
import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest
import yaml
from axe_playwright_python.sync_playwright import Axe
from ledger import built
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright
from programs import launch_chromium
from studies import TOC, pages_of

from kdcourse.best_practices import BEST_PRACTICES, borrowed, judge, speaks
from kdcourse.claims import LEDGER
from kdcourse.experiments import STUDIES, read_study

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "_build" / "html"
PATIENCE = 120_000  # milliseconds until a page that does not come fails, on a busy machine too
expect.set_options(timeout=PATIENCE)
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))


PAGES = pages_of(TOC)
NOTEBOOKS = [page for page in PAGES if (ROOT / f"{page}.ipynb").is_file()]


def is_stale() -> bool:
    """Whether a source is newer than the built book."""
    index = SITE / "searchindex.js"
    if not index.is_file():
        return True
    sources = [ROOT / "_config.yml", ROOT / "_toc.yml"]
    sources += [path for kind in ("py", "json") for path in (ROOT / "kdcourse").rglob(f"*.{kind}")]
    sources += [path for path in (ROOT / "book").rglob("*") if "vendor" not in path.parts]
    newest = max(path.stat().st_mtime for path in sources if path.is_file())
    return newest > index.stat().st_mtime


@pytest.fixture(scope="session")
def site() -> Path:
    """The book's folder; built here only when that has not happened since the last change."""
    with Path(__file__).open() as one_at_a_time:  # of the processes that share these tests
        fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
        if is_stale():
            builder = Path(sys.executable).with_name("jupyter-book")
            subprocess.run([sys.executable, ROOT / "book/assets/fetch.py"], check=True)
            subprocess.run([builder, "build", ROOT, "-W", "-n", "--keep-going"], check=True)
    return SITE


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="session")
def address(site: Path) -> Iterator[str]:
    """Where the book is served."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = launch_chromium(playwright)
        yield chromium
        chromium.close()


@dataclass
class Opened:
    """A page in the browser, with everything it asked for and complained about."""

    name: str
    page: Page
    requests: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


WIDGETS = 'script[type="application/vnd.jupyter.widget-{}+json"]'


def new_page(browser: Browser) -> Page:
    """An empty page of a browser that has seen nothing yet."""
    page = browser.new_context(
        viewport={"width": 1280, "height": 900}, color_scheme="light", reduced_motion="reduce"
    ).new_page()
    page.set_default_timeout(PATIENCE)
    return page


def open_page(browser: Browser, url: str, name: str) -> Opened:
    """Open one page, listening from the start, and wait until formulas and widgets are drawn."""
    page = new_page(browser)
    opened = Opened(name, page)
    page.on("request", lambda request: opened.requests.append(request.url))
    page.on("requestfailed", lambda request: opened.problems.append(f"failed: {request.url}"))
    page.on("pageerror", lambda error: opened.problems.append(f"exception: {error}"))
    page.on(
        "console",
        lambda message: message.type == "error" and opened.problems.append(f"{message.text}"),
    )
    page.on(
        "response",
        lambda response: (
            response.status >= 400 and opened.problems.append(f"{response.status}: {response.url}")
        ),
    )
    page.goto(url)
    page.wait_for_load_state("networkidle")
    page.evaluate("() => window.MathJax?.startup?.promise.then(() => null)")
    if page.locator(WIDGETS.format("view")).count():
        page.locator(".jupyter-widgets").first.wait_for()
    states = "".join(page.locator(WIDGETS.format("state")).all_text_contents())
    expect(page.locator(".noUi-handle")).to_have_count(states.count('SliderView"'))
    return opened


# pytest puts the tests of a page one after the other, and `--dist worksteal` leaves them so.
@pytest.fixture(scope="module", params=PAGES)
def opened(request: pytest.FixtureRequest, browser: Browser, address: str) -> Iterator[Opened]:
    """Every page of the book, opened once; a test leaves it as it found it."""
    opened = open_page(browser, f"{address}/{request.param}.html", request.param)
    yield opened
    opened.page.context.close()


def test_no_request_leaves_the_host(opened: Opened, address: str) -> None:
    outside = [url for url in opened.requests if not url.startswith((address, "data:", "blob:"))]
    assert not outside


def test_nothing_fails_or_complains(opened: Opened) -> None:
    assert not opened.problems


def test_one_search_box(opened: Opened) -> None:
    assert opened.page.locator("input[type=search]").count() == 1
    assert opened.page.locator(".search-button__button:visible").count() == 1


def test_words_are_rendered(opened: Opened) -> None:
    article = opened.page.locator("article").inner_text()
    roles = "cite|doc|download|eval|exercise|figure|glue|math|note|numref|ref|solution|term|tip"
    raw = re.findall(rf"\{{(?:{roles})[a-z:-]*\}}|^:::|^```|\{{\{{.*?\}}\}}", article, re.MULTILINE)
    assert not raw, "markup that a reader sees as it was typed"
    assert "Traceback (most recent call last)" not in article
    assert opened.page.locator("mjx-merror, [data-mjx-error]").count() == 0
    title = opened.page.locator("article h1")
    assert title.count() == 1


def test_images_say_what_they_show(opened: Opened) -> None:
    silent = opened.page.eval_on_selector_all(
        "article img, article svg[role=img]",
        """images => images
            .filter(image => {
              const text = image.alt ?? image.getAttribute("aria-label") ?? "";
              return !text.trim() || /\\.(png|svg|jpe?g)$/.test(text);
            })
            .map(image => image.outerHTML.slice(0, 200))""",
    )
    assert not silent


# For every word, axe makes and parses the colours of all that the word stands on. Compiled for old
# browsers, it keeps their numbers in weak maps, where properties are quicker; and the colours are
# the same few, whose numbers are remembered.
QUICK_AXE = """
((WeakMap) => {AXE
})(class {
  #key = Symbol();
  has(object) { return this.#key in object; }
  get(object) { return object[this.#key]; }
  set(object, value) { object[this.#key] = value; return this; }
});
(({ Color }) => {
  const parse = Color.prototype.parseString;
  const known = new Map();
  Color.prototype.parseString = function (text) {
    if (!known.has(text)) known.set(text, parse.call(new Color(), text));
    const { r, g, b, alpha } = known.get(text);
    return Object.assign(this, { r, g, b, alpha });
  };
})(axe.commons.color);
"""
AXE = Axe(QUICK_AXE.replace("AXE", Axe().axe_script))


def test_quick_axe_finds_what_axe_finds(browser: Browser) -> None:
    colours = ["#777", "#767676", "rgb(0 90 200 / 0.7)", "oklch(60% 0.2 30)", "hsl(200 90% 25%)"]
    grounds = ["white", "#eee", "rgba(0, 0, 0, 0.05)", "color-mix(in srgb, white, navy)"]
    words = [
        f'<p style="color: {colour}; background: {ground}">{colour} on {ground}'
        for ground in grounds
        for colour in colours
    ]
    page = new_page(browser)
    page.set_content("".join(words))
    found = []
    for axe in (Axe(), AXE):
        results = axe.run(page, options={"runOnly": "color-contrast"}).response
        kinds = ("violations", "passes", "incomplete")
        nodes = [node for kind in kinds for rule in results[kind] for node in rule["nodes"]]
        found.append([(node["html"], node["any"]) for node in nodes])
    page.context.close()
    plain, quick = found
    assert quick == plain
    assert len(quick) == len(words)
    assert any(check["data"]["contrastRatio"] < 4.5 for _, (check,) in quick)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessible(opened: Opened, scheme: str) -> None:
    opened.page.emulate_media(color_scheme=scheme)
    expect(opened.page.locator("html")).to_have_attribute("data-theme", scheme)
    # All rules run; only of violations is every element described, which is much of the work.
    options = {"preload": False, "resultTypes": ["violations"]}
    results = AXE.run(opened.page, options=options).response
    opened.page.emulate_media(color_scheme="light")
    violations = [
        f"{rule['help']}: {node['html'][:200]}"
        for rule in results["violations"]
        for node in rule["nodes"][:3]
    ]
    assert not violations
    assert len(results["passes"]) > 20


def test_fits_a_phone(opened: Opened) -> None:
    opened.page.set_viewport_size({"width": 375, "height": 700})
    width = opened.page.evaluate("document.documentElement.scrollWidth")
    opened.page.set_viewport_size({"width": 1280, "height": 900})
    assert width <= 375


# What a figure shows: the alternative texts and sources of its visible pictures, and its numbers.
SHOWN = """slider => {
  const cell = slider.closest(".cell_output, .kd-live");
  const parts = cell.querySelectorAll("svg[role=img], img, td, .bar");
  return [...parts]
    .filter(part => part.getClientRects().length)
    .map(part => [part.getAttribute("aria-label"), part.src, part.textContent,
                  part.getAttribute("style")].join("|"))
    .join("\\n");
}"""


def comes_to_show(slider: Locator, wanted: Callable[[str], bool]) -> bool:
    """Whether what the slider's figure shows becomes what is wanted."""
    for _ in range(600):  # by far enough: the first or second answer is the one
        if wanted(slider.evaluate(SHOWN)):
            return True
        slider.page.wait_for_timeout(50)
    return False


def test_sliders_move_their_figure_by_keyboard(opened: Opened) -> None:
    sliders = opened.page.locator("article input[type=range], article .noUi-handle").all()
    shown_first = []
    for slider in sliders:
        name = slider.get_attribute("aria-label") or slider.evaluate(
            "slider => [...(slider.labels ?? [])].map(label => label.textContent).join('')"
        )
        assert name.strip(), "a slider without a name"
        assert slider.evaluate("slider => slider.tabIndex") == 0
        assert comes_to_show(slider, bool), f"the slider {name!r} has no figure"
        before = slider.evaluate(SHOWN)
        slider.focus()
        opened.page.keyboard.press("ArrowRight")
        moved = comes_to_show(slider, lambda shown, before=before: shown != before)
        assert moved, f"the slider {name!r} moves nothing"
        opened.page.keyboard.press("ArrowLeft")
        back = comes_to_show(slider, lambda shown, before=before: shown == before)
        assert back, f"the slider {name!r} does not come back"
        shown_first.append(before)
    assert [slider.evaluate(SHOWN) for slider in sliders] == shown_first


def test_choosers_choose_by_keyboard(opened: Opened) -> None:
    choosers = opened.page.locator(".kd-live:has(tr[data-fits])").all()
    assert bool(choosers) == (opened.name == "book/best_practices")
    for chooser in choosers:
        shown = []
        first = chooser.locator("select").first
        for _ in range(first.locator("option").count()):
            rows = chooser.locator("tbody tr:visible th").all_inner_texts()
            assert rows or chooser.locator(".nothing").is_visible()
            shown.append(rows)
            first.focus()
            opened.page.keyboard.press("ArrowDown")
        assert any(rows != shown[0] for rows in shown), "the answers change nothing"


def test_verdicts_on_the_page_are_those_of_the_stored_studies(site: Path, browser: Browser) -> None:
    rows = json.loads((STUDIES / "best_practices.json").read_text(encoding="utf-8"))["rows"]
    own = pd.DataFrame(rows)
    table = pd.concat([own, read_study("best_practices_elsewhere").table, borrowed()])
    table = table[table["seed"].isin(own["seed"])]
    expected = {}
    for rule in BEST_PRACTICES:
        verdict, effects = judge(rule, table)
        said = [speaks(effect) for effect in effects]
        count = f"{said.count('for')} of {len(said)}"
        count += f", {said.count('against')} against" * ("against" in said)
        expected[rule.name] = [rule.advice, verdict, count, "\n".join(map(str, effects))]
    address = (site / "book/best_practices.html").as_uri()
    opened = open_page(browser, address, "book/best_practices")
    lines = opened.page.locator("table.verdicts tbody tr").all()
    found = {}
    for line in lines:
        name, *others = [cell.inner_text().strip() for cell in line.locator("td").all()]
        found[name] = others
        target = line.locator("a").get_attribute("href")
        assert opened.page.locator(target).count() == 1, f"{name} links to nothing"
    opened.page.context.close()
    assert found == expected


def test_quizzes_answer_by_keyboard(opened: Opened) -> None:
    questions = opened.page.locator("details:has(> summary:text-is('Answer'))").all()
    assert bool(questions) == bool(opened.page.locator("h2:has-text('Quiz')").count())
    for question in questions:
        assert not question.evaluate("question => question.open")
        question.locator("summary").focus()
        opened.page.keyboard.press("Enter")
        assert question.evaluate("question => question.open")
        expect(question.locator("p").first).to_be_visible()
        opened.page.keyboard.press("Enter")
        assert not question.evaluate("question => question.open")


def test_colab_opens_this_notebook(opened: Opened) -> None:
    links = opened.page.eval_on_selector_all(
        'a[href*="colab.research.google.com"]', "links => links.map(link => link.href)"
    )
    repository = CONFIG["repository"]["url"].removeprefix("https://github.com/")
    branch = CONFIG["repository"]["branch"]
    expected = f"github/{repository}/blob/{branch}/{opened.name}.ipynb"
    in_header = [link for link in links if f"/{opened.name}.ipynb" in link]
    if opened.name in NOTEBOOKS:
        assert in_header == [f"https://colab.research.google.com/{expected}"]
    else:
        assert not in_header


def test_opens_from_disk(opened: Opened, browser: Browser, site: Path) -> None:
    from_disk = open_page(browser, (site / f"{opened.name}.html").as_uri(), opened.name)
    outside = [url for url in from_disk.requests if not url.startswith(("file:", "data:", "blob:"))]
    from_disk.page.context.close()
    assert not from_disk.problems
    assert not outside


@pytest.mark.parametrize("way", ["served", "from disk"])
def test_search_finds_words(browser: Browser, address: str, site: Path, way: str) -> None:
    start = address if way == "served" else site.as_uri()
    opened = open_page(browser, f"{start}/search.html?q=temperature", "search")
    results = opened.page.locator("#search-results li a")
    expect(results.first).to_be_visible()
    expect(opened.page.locator("#search-results")).to_contain_text("Glossary")
    outside = [url for url in opened.requests if not url.startswith((start, "data:", "blob:"))]
    opened.page.context.close()
    assert not outside
    assert not opened.problems


def test_first_page_is_the_introduction(browser: Browser, address: str) -> None:
    opened = open_page(browser, f"{address}/index.html", "index")
    opened.page.wait_for_url(f"{address}/{TOC['root']}.html")
    opened.page.context.close()


# As root, linkchecker becomes "nobody", who may not be able to read this folder.
LINKCHECKER = (
    "from linkcheck.command import linkchecker; "
    "linkchecker.drop_privileges = lambda: None; linkchecker.linkchecker()"
)


def test_internal_links(site: Path) -> None:
    command = [sys.executable, "-c", LINKCHECKER, "--no-status", "--ignore-url=^(https?|mailto):"]
    checked = subprocess.run(
        [*command, site / f"{TOC['root']}.html"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert int(re.search(r"(\d+) links? in", checked.stdout).group(1)) > len(PAGES)


def test_links_point_at_places_that_exist(site: Path) -> None:
    places = {
        (site / f"{page}.html").resolve(): set(re.findall(r'\bid="([^"]+)"', text))
        for page in PAGES
        if (text := (site / f"{page}.html").read_text(encoding="utf-8"))
    }
    broken = []
    for file in places:
        for link in re.findall(r'href="([^":]*#[^"]+)"', file.read_text(encoding="utf-8")):
            path, place = link.split("#", 1)
            target = (file.parent / path).resolve() if path else file
            if target in places and place not in places[target]:
                broken.append(f"{file.name}: {link}")
    assert not broken


def test_the_ledger_is_of_this_book(site: Path) -> None:
    """Every claim that the pages print, in order; the numbers differ a little between machines."""
    known = json.loads(LEDGER.read_text(encoding="utf-8"))
    words = [
        [(e["page"], e["sentence"], e["needs"]) for e in claims] for claims in (built(), known)
    ]
    assert words[0] == words[1], "another claim in the book than in the ledger: make ledger"
    for entry, other in zip(built(), known, strict=True):
        new, old = entry["sets"]["0"], other["sets"]["0"]
        assert abs(new["mean"] - old["mean"]) <= 0.5 * (old["high"] - old["low"]) + 0.5, entry
