"""Every link, anchor, picture and script that a built page names is there."""

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest


class Page(HTMLParser):
    """The anchors of a page, and what it points to."""

    def __init__(self, path: Path):
        super().__init__()
        self.anchors, self.targets = set(), []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.anchors |= {attributes.get("id"), attributes.get("name") if tag == "a" else None}
        self.targets += [attributes[key] for key in ("href", "src") if attributes.get(key)]
        if tag == "meta" and attributes.get("http-equiv", "").lower() == "refresh":
            self.targets.append(attributes["content"].partition("url=")[2])


def dead_links(path: Path, parsed: dict[Path, Page]) -> list[str]:
    """The targets of a page that are neither on the web nor in the folder. `parsed` remembers pages."""

    def page(file):
        if file not in parsed:
            parsed[file] = Page(file)
        return parsed[file]

    dead = []
    for target in page(path).targets:
        link = urlsplit(target)
        if link.scheme or link.netloc:
            continue
        file = (path.parent / unquote(link.path)).resolve() if link.path else path
        anchor = unquote(link.fragment)
        if not file.is_file() or (anchor and file.suffix == ".html" and anchor not in page(file).anchors):
            dead.append(target)
    return dead


@pytest.fixture(scope="module")
def parsed():
    return {}


def test_internal_links_resolve(html, name, parsed):
    assert dead_links(html / name, parsed) == []


def test_the_front_door_leads_into_the_book(html, parsed):
    assert Page(html / "index.html").targets == ["book/intro.html"]
    assert dead_links(html / "index.html", parsed) == []


@pytest.mark.parametrize(
    "body, dead",
    [
        ('<a href="gone.html">x</a>', ["gone.html"]),
        ('<a href="#gone">x</a>', ["#gone"]),
        ('<a href="page.html#gone">x</a>', ["page.html#gone"]),
        ('<img src="gone.png">', ["gone.png"]),
        ('<meta http-equiv="refresh" content="0; url=gone.html">', ["gone.html"]),
        ('<b id="here"></b><a href="#here">x</a><a href="https://example.org/">y</a>', []),
    ],
)
def test_dead_links_are_caught(tmp_path, body, dead):
    (tmp_path / "page.html").write_text(body, encoding="utf-8")
    assert dead_links(tmp_path / "page.html", {}) == dead
