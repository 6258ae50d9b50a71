"""Open the built docs in Chromium, and say what a reader would trip over.

    python docs/browser_check.py docs/_build/html [--pictures FOLDER]

Every page is opened wide and narrow, light and dark, from a server on this machine. Wrong
are requests to other machines, answers that are errors, errors of scripts, broken pictures,
pages wider than the window, formulas or drawings that are missing or hard to read, and a
search that does not find what is there. The exit code is 1 if anything is wrong. Needs
the package playwright and an installed Chromium; ``--pictures`` keeps screenshots.
"""

import argparse
import shutil
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path

from playwright.sync_api import TimeoutError, sync_playwright

WIDTHS, THEMES = (1280, 390), ("light", "dark")
# No services of the browser's own.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# Pages on which there must be some of these.
EXPECTED = {
    "index.html": {".sd-card": 6},
    "adapters.html": {"svg.diagram": 10, "math": 8, "table": 1},
    "how_it_works.html": {"svg.diagram": 5, "math": 4},
    "gallery/index.html": {".sphx-glr-thumbcontainer img": 6},
    "api/generated/skpeft.AdapterClassifier.html": {"dl.class": 1},
    "api/generated/skpeft.adapters.LoRA.html": {"math": 4},
}
WORDS = {"LoRA": "adapters.html", "multilabel": "user_guide.html", "shrinkage": ""}
# Lines about what is wrong on a page, as a reader sees it.
LOOK = """
async ([expected]) => {
  for (const image of document.images) {
    image.loading = "eager";
    await image.decode().catch(() => {});
  }
  const wrong = [...document.images]
    .filter((image) => !image.naturalWidth)
    .map((image) => `broken picture ${image.src}`);
  const width = document.documentElement.scrollWidth;
  if (width > window.innerWidth) {
    const scrolls = (part) =>
      part && (getComputedStyle(part).overflowX != "visible" || scrolls(part.parentElement));
    const wide = [...document.querySelectorAll("body *")]
      .filter((part) => part.getBoundingClientRect().right > window.innerWidth + 1)
      .filter((part) => !scrolls(part.parentElement))
      .map((part) => `${part.tagName}.${part.className}`);
    wrong.push(`${width} wide in a window of ${window.innerWidth}: ${wide.slice(0, 4)}`);
  }
  for (const [selector, least] of Object.entries(expected)) {
    const seen = [...document.querySelectorAll(selector)]
      .filter((part) => part.getBoundingClientRect().width > 0).length;
    if (seen < least) wrong.push(`${seen} of ${selector}, at least ${least} expected`);
  }
  const luminance = (color) => {
    const [r, g, b] = color.match(/[\\d.]+/g).slice(0, 3).map((part) => {
      const share = part / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = luminance(getComputedStyle(document.body).backgroundColor);
  const contrast = (color) => {
    const [low, high] = [ground, luminance(color)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  for (const part of document.querySelectorAll("svg.diagram text, svg.diagram .flow")) {
    const style = getComputedStyle(part);
    const found = contrast(part.tagName == "text" ? style.fill : style.stroke);
    if (found < 4.5) {
      wrong.push(`contrast ${found.toFixed(1)} of "${part.textContent}" in a drawing`);
    }
  }
  return wrong;
}
"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def serve(folder):
    """Server of a folder on a free port."""
    handler = partial(Quiet, directory=folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def pages_in(folder):
    """Paths of the pages below a folder, without those that are parts of the theme."""
    found = sorted(path.relative_to(folder) for path in folder.rglob("*.html"))
    return [path.as_posix() for path in found if not path.parts[0].startswith("_")]


def watch(page, base, wrong):
    """Write down requests to elsewhere, errors of the server and of scripts."""

    def request(asked):
        if not asked.url.startswith((base, "data:", "blob:")):
            wrong.append(f"request to {asked.url}")

    def response(got):
        if got.status >= 400:
            wrong.append(f"{got.status} for {got.url}")

    page.on("request", request)
    page.on("response", response)

    def failed(asked):
        if asked.failure != "net::ERR_ABORTED":  # by going on to the next page
            wrong.append(f"no answer: {asked.url}")

    page.on("requestfailed", failed)
    page.on("pageerror", lambda error: wrong.append(f"script: {error}"))


def search(page, base):
    """Lines about words that the search does not find."""
    wrong = []
    for word, expected in WORDS.items():
        page.goto(f"{base}/search.html?q={word}")
        try:
            page.wait_for_selector("#search-results li a", timeout=10_000)
        except TimeoutError:
            wrong.append(f"the search for {word!r} finds nothing")
            continue
        page.wait_for_timeout(500)  # for the rest of what it finds
        links = page.eval_on_selector_all(
            "#search-results li a", "links => links.map(link => link.href)"
        )
        if not any(expected in link for link in links):
            wrong.append(f"search for {word!r} finds {len(links)}, not {expected}")
    return wrong


def check(browser, base, pages, width, theme, pictures):
    """Lines about all that is wrong at one width in one theme."""
    window = browser.new_context(viewport={"width": width, "height": 900})
    window.add_init_script(
        f"localStorage.setItem('mode', '{theme}');"
        f"localStorage.setItem('theme', '{theme}');"
    )
    page, lines = window.new_page(), []
    wrong = []
    watch(page, base, wrong)
    for path in pages:
        page.goto(f"{base}/{path}", wait_until="load")
        wrong += page.evaluate(LOOK, [EXPECTED.get(path, {})])
        if page.evaluate("document.documentElement.dataset.theme") != theme:
            wrong.append(f"the theme is not {theme}")
        if pictures and path in EXPECTED | {"user_guide.html": 0, "benchmarks.html": 0}:
            name = f"{path.replace('/', '_')}-{width}-{theme}.png"
            page.screenshot(path=pictures / name, full_page=False)
        lines += [f"{path}, {width} px, {theme}: {line}" for line in wrong]
        wrong.clear()
    lines += [f"search, {width} px, {theme}: {line}" for line in search(page, base)]
    lines += [f"search, {width} px, {theme}: {line}" for line in wrong]
    window.close()
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of the built pages")
    parser.add_argument("--pictures", type=Path, help="folder for screenshots")
    asked = parser.parse_args()
    pages = pages_in(asked.folder)
    missing = sorted(EXPECTED.keys() - set(pages))
    if missing:
        sys.exit(f"not in {asked.folder}: {missing}")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        sys.exit("no Chromium found; install it, as with apt-get install chromium")
    if asked.pictures:
        asked.pictures.mkdir(parents=True, exist_ok=True)
    server = serve(asked.folder)
    base = f"http://127.0.0.1:{server.server_address[1]}"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        lines = [
            line
            for width, theme in product(WIDTHS, THEMES)
            for line in check(browser, base, pages, width, theme, asked.pictures)
        ]
        browser.close()
    server.shutdown()
    print(*lines, f"{len(pages)} pages, {len(lines)} faults", sep="\n")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
