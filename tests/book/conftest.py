"""The built book and a browser to read it with; both skip with a sentence where they are missing."""

import functools
import http.server
import os
import re
import shutil
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT / "_build" / "html"
CHROMIUM = [
    "chromium",
    "chromium-browser",
    "google-chrome",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    r"C:\Program Files\Google\Chrome\Application\chrome.exe",
    r"C:\Program Files (x86)\Google\Chrome\Application\chrome.exe",
]
QUIET = [
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-quic",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--no-first-run",
]


def pages():
    """The built pages, as paths under _build/html: those of the table of contents, and Sphinx's own."""
    toc = (ROOT / "_toc.yml").read_text(encoding="utf-8")
    return [f"{name}.html" for name in re.findall(r"(?:root|file): (\S+)", toc)] + ["search.html"]


def missing(sentence):
    """Skip; or fail, where LIPBOOK_REQUIRE_BROWSER=1 in the environment says that nothing may be missing."""
    if os.environ.get("LIPBOOK_REQUIRE_BROWSER") == "1":
        pytest.fail(sentence)
    pytest.skip(sentence)


def pytest_generate_tests(metafunc):
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", pages())


@pytest.fixture(scope="session")
def html():
    """The folder of the built book."""
    if not (HTML / "index.html").exists():
        missing("The book is not built: run `make book` first.")
    return HTML


@contextmanager
def served(folder):
    """The address on localhost at which `folder` is served meanwhile."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def site(html):
    with served(html) as address:
        yield address


@pytest.fixture
def planted(tmp_path):
    """A function that serves the body of one page, and returns its address."""
    with served(tmp_path) as address:

        def plant(body):
            page = f"<!doctype html><title>A page</title><body>{body}</body>"
            (tmp_path / "page.html").write_text(page, encoding="utf-8")
            (tmp_path / "favicon.ico").touch()
            return f"{address}/page.html"

        yield plant


# One a module, not a session: while it runs, its event loop is this thread's, and notebooks need their own.
@pytest.fixture(scope="module")
def browser():
    """Headless Chromium, for which no host but localhost has an address."""
    found = next((path for path in map(shutil.which, CHROMIUM) if path), None)
    if not found:
        missing("No Chromium or Chrome is installed: the built pages were not read in a browser.")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=QUIET)
        yield chromium
        chromium.close()
