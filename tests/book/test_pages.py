"""Every built page in headless Chromium, at two widths and in two themes, with the network off.

Each check is also shown a bad page, and must name what is wrong with it.
"""

import re
from contextlib import contextmanager

import pytest

THEMES = ["light", "dark"]
WIDTHS = {"wide": 1280, "phone": 390}

# What prose must not show: TeX, directives and roles that were never read as such.
RAW = {
    "raw TeX": re.compile(r"\$[^$\n]*[\\^_{}][^$\n]*\$|\\[(\[]|\\[a-zA-Z]{2,}"),
    "an empty citation": re.compile(r"\[\]"),
    "a raw directive": re.compile(r":::|```|\{(?:prf:|cite|exercise|solution|ref|numref|eq|term|doc)[^}]*\}"),
}

READY = """async () => {
  if (window.MathJax?.startup?.promise) await MathJax.startup.promise;
  await document.fonts.ready;
}"""

UNNAMED_IMAGES = """() => [...document.images].filter(i => !i.hasAttribute("alt") ||
  (i.closest("article") && !i.alt.trim())).map(i => i.src.slice(0, 80))"""

UNRENDERED_MATH = """() => [...document.querySelectorAll(".math")].filter(m =>
  !m.querySelector("mjx-container") || m.querySelector("mjx-merror")).map(m => m.textContent.slice(0, 80))"""

PROSE = """() => {
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const hidden = "code, pre, script, style, noscript, mjx-container";
  let text = "";
  while (walker.nextNode())
    if (!walker.currentNode.parentElement.closest(hidden)) text += walker.currentNode.data + "\\n";
  return text;
}"""

# Text whose contrast with what is behind it is under 4.5, or 3 if large (WCAG 2, AA). Pictures are left out.
PALE_TEXT = """() => {
  const rgba = css => { const n = css.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
  const over = (top, under) => [0, 1, 2].map(k => top[3] * top[k] + (1 - top[3]) * under[k]);
  const behind = e => {
    if (!e) return [255, 255, 255];
    const colour = rgba(getComputedStyle(e).backgroundColor);
    return colour[3] === 1 ? colour : over(colour, behind(e.parentElement));
  };
  const luminance = c => [0.2126, 0.7152, 0.0722].reduce((sum, weight, k) => {
    const s = c[k] / 255;
    return sum + weight * (s <= 0.04045 ? s / 12.92 : ((s + 0.055) / 1.055) ** 2.4);
  }, 0);
  const pale = new Set(), walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement, style = getComputedStyle(e);
    if (!walker.currentNode.data.trim()) continue;
    if (!e.checkVisibility({visibilityProperty: true, opacityProperty: true})) continue;
    const back = behind(e), [a, b] = [luminance(over(rgba(style.color), back)), luminance(back)];
    const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.6 && style.fontWeight >= 700);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < (large ? 3 : 4.5))
      pale.add(walker.currentNode.data.trim().slice(0, 40) + " " + ratio.toFixed(1));
  }
  return [...pale];
}"""

VISIBLE_FRAME = """slider => [...slider.closest(".widget-subarea").querySelectorAll("img")]
  .filter(i => i.checkVisibility()).map(i => i.alt + i.src).join()"""


# The browser's own event for a socket may come after the page was judged.
SOCKETS = """window.sockets = [];
window.WebSocket = class extends WebSocket {
  constructor(url, ...rest) { window.sockets.push(String(url)); super(url, ...rest); }
};"""


@contextmanager
def opened(browser, address, theme="light", width=1280):
    """A page at `address` with nothing but localhost in reach, and the list of what went wrong so far."""
    home = address.split("/", 3)[2]
    problems = []
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
    context.add_init_script(f'localStorage.mode = localStorage.theme = "{theme}"')
    context.add_init_script(SOCKETS)

    def request(sent):
        if not sent.url.startswith((f"http://{home}/", "file:", "data:", "blob:")):
            problems.append(f"left localhost: {sent.url}")

    def answer(response):
        if response.status >= 400:
            problems.append(f"answered {response.status}: {response.url}")

    def console(message):
        if message.type == "error" and "Failed to load resource" not in message.text:
            problems.append(f"console error: {message.text}")

    page = context.new_page()
    page.on("request", request)
    page.on("response", answer)
    page.on("console", console)
    page.on("pageerror", lambda error: problems.append(f"page error: {error}"))
    page.goto(address)
    page.evaluate(READY)
    if page.locator('script[type="application/vnd.jupyter.widget-view+json"]').count():
        page.locator(".widget-subarea").first.wait_for()
    yield page, problems
    context.close()


def read(browser, address, theme="light"):
    """What is wrong with a page in one theme, at both widths, as a list of sentences."""
    with opened(browser, address, theme) as (page, problems):
        prose = page.evaluate(PROSE)
        problems += [f"{what}: {m.group()}" for what, raw in RAW.items() for m in raw.finditer(prose)]
        problems += [f"an image without alt text: {image}" for image in page.evaluate(UNNAMED_IMAGES)]
        problems += [f"mathematics not rendered: {tex}" for tex in page.evaluate(UNRENDERED_MATH)]
        problems += [f"pale text: {text}" for text in page.evaluate(PALE_TEXT)]
        problems += [f"left localhost: {address}" for address in page.evaluate("window.sockets")]
        for name, width in WIDTHS.items():
            page.set_viewport_size({"width": width, "height": 900})
            across = page.evaluate("document.documentElement.scrollWidth")
            if across > width:
                problems.append(f"scrolls sideways ({name}): {across} px in {width}")
        return problems


def move_slider(page):
    """What is wrong with the sliders of a page: each must show another picture after an arrow key."""
    problems = []
    for slider in page.locator(".widget-subarea [role=slider]").all():
        before = slider.evaluate(VISIBLE_FRAME)
        slider.press("ArrowRight")
        page.wait_for_timeout(100)
        after = slider.evaluate(VISIBLE_FRAME)
        if not after or after == before:
            problems.append("the arrow key does not change the picture")
    return problems


def found(page, word):
    """How many pages the book's own search finds for `word`, typed into the search box of an open page."""
    page.keyboard.press("Control+k")
    page.keyboard.type(word)
    page.keyboard.press("Enter")
    page.wait_for_url("**/search.html?*")
    page.wait_for_function(
        '/found|did not match/.test(document.querySelector("#search-results .search-summary")?.textContent)'
    )
    return page.locator("#search-results ul.search > li").count()


@pytest.mark.parametrize("theme", THEMES)
def test_page_reads_well_with_the_network_off(browser, site, name, theme):
    assert read(browser, f"{site}/{name}", theme) == []


@pytest.mark.parametrize(
    "body, problem",
    [
        ('<img alt="far" src="https://example.org/far.png">', "left localhost"),
        ('<script>new WebSocket("ws://127.0.0.1:9/")</script>', "left localhost"),
        ('<script>console.error("it broke")</script>', "console error: it broke"),
        ('<script>throw Error("it broke")</script>', "page error: it broke"),
        ('<script src="missing.js"></script>', "answered 404"),
        ('<img src="data:image/gif;base64,R0lGODlhAQABAAAAACw=">', "an image without alt text"),
        ('<article><img alt=" " src="data:image/gif;base64,R0lGODlhAQABAAAAACw="></article>', "without alt"),
        (r"<p>the norm $\sigma_1$ of W</p>", "raw TeX"),
        (r"<p>half is \frac12</p>", "raw TeX"),
        ("<p>:::{prf:theorem} Rank</p>", "a raw directive"),
        ("<p>as {cite:p}`x` shows</p>", "a raw directive"),
        ("<p>as shown by []</p>", "an empty citation"),
        (r'<span class="math">\(x\)</span>', "mathematics not rendered"),
        ('<p style="width: 900px">wide</p>', "scrolls sideways (phone)"),
        ('<p style="color: #999">pale</p>', "pale text"),
    ],
)
def test_a_bad_page_is_caught(browser, planted, body, problem):
    assert any(problem in said for said in read(browser, planted(body))), f"{body} passed"


def test_a_good_page_passes(browser, planted):
    assert read(browser, planted("<p>It costs $5 or $6, and <code>\\frac</code> is code.</p>")) == []


def test_arrow_keys_move_every_slider(browser, site, html):
    sliding = [path for path in html.rglob("*.html") if "SelectionSlider" in path.read_text(encoding="utf-8")]
    assert sliding, "no page of the book has a slider"
    for path in sliding:
        with opened(browser, f"{site}/{path.relative_to(html).as_posix()}") as (page, problems):
            assert page.locator(".widget-subarea [role=slider]").count() > 0
            assert problems + move_slider(page) == []


def test_a_dead_slider_is_caught(browser, planted):
    body = '<div class="widget-subarea"><b role="slider" tabindex="0">1</b><img alt="one" src="data:,"></div>'
    with opened(browser, planted(body)) as (page, _):
        assert move_slider(page) == ["the arrow key does not change the picture"]


@pytest.mark.parametrize("word, known", [("Lipschitz", True), ("qwertyuiop", False)])
def test_search_finds_what_the_book_holds(browser, site, word, known):
    with opened(browser, f"{site}/book/intro.html") as (page, problems):
        assert (found(page, word) > 0) is known
        assert problems == []


@pytest.mark.parametrize("path", ["book/intro.html", "book/bounds/spectral-norms.html"])
def test_page_reads_well_from_the_disk(browser, html, path):
    # The theme preloads its icons in a way that browsers refuse for files; they load plainly later.
    problems = [said for said in read(browser, (html / path).as_uri()) if "Access to font" not in said]
    assert problems == []
