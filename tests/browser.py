"""The report's page as a browser draws it: what lies where, and every pixel."""

import html
import json
import re
import shutil
import subprocess
from typing import NamedTuple

import numpy as np
from PIL import Image

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-quic", "--hide-scrollbars"),
    *("--force-device-scale-factor=1", "--force-prefers-reduced-motion"),
)
TALLEST = 16_000
# The page in a frame of exactly so many CSS pixels: a window of a headless browser has a least width.
WRAPPER = """<!doctype html><meta charset="utf-8"><meta name="color-scheme" content="light dark">
<style>body {{ margin: 0 }} iframe {{ border: 0; display: block; width: {width}px; height: 900px }}</style>
<iframe srcdoc="{page}"></iframe><pre id="found"></pre>
<script>
onload = () => {{
  const frame = document.querySelector("iframe"), inside = frame.contentDocument, root = inside.documentElement;
  frame.style.height = root.scrollHeight + "px";
  const box = e => {{ const b = e.getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom]; }};
  const all = (what, from = inside) => [...from.querySelectorAll(what)].filter(e => e.getClientRects().length);
  const scale = svg => svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
  // The rest of a wide table is out of sight.
  const whole = e => !e.closest(".wide") || box(e)[2] <= box(e.closest(".wide"))[2];
  // What is folded has a place, but nothing is drawn there.
  const told = e => e.textContent.trim() && whole(e) && e.checkVisibility();
  const size = e => parseFloat(inside.defaultView.getComputedStyle(e).fontSize);
  const cells = table => [...table.rows].map(row => [...row.cells].map(cell => cell.textContent));
  document.getElementById("found").textContent = JSON.stringify({{
    client: root.clientWidth, scroll: root.scrollWidth, height: root.scrollHeight,
    charts: Object.fromEntries(all("svg.chart").map(e => [e.parentElement.id.slice(7), box(e)])),
    labels: all("svg.chart text").map(e => [e.textContent, ...box(e)]),
    homes: all("svg.chart text").map(e => box(e.ownerSVGElement)),
    sizes: all("svg.chart text").map(e => size(e) * scale(e.ownerSVGElement)),
    texts: all("h1, h2, h3, p, li, th, td, figcaption, dd").filter(told).map(box),
    pictures: all("img").map(e => [e.naturalWidth, ...box(e)]),
    moving: all("#figure-flows img").map(e => e.currentSrc.slice(0, 15)),
    tables: Object.fromEntries(all("table[id]").map(e => [e.id.slice(6), cells(e)])),
    wide: all(".wide").map(e => [e.clientWidth, e.scrollWidth]),
  }});
}};
</script>"""


class Drawn(NamedTuple):
    found: dict
    pixels: np.ndarray

    def box(self, left, top, right, bottom):
        """The pixels of a box, as far as they are in the picture."""
        return self.pixels[max(0, int(top)) : int(bottom) + 1, max(0, int(left)) : int(right) + 1]


def draw(page, folder, width, scheme):
    """The page in a browser: what lies where, and a screenshot of all of it."""
    wrapper, shot = folder / f"wrapper-{width}.html", folder / f"{scheme}-{width}.png"
    wrapper.write_text(WRAPPER.format(page=html.escape(page), width=width))
    flags = [
        *FLAGS,
        f"--user-data-dir={folder / 'profile'}",
        f"--blink-settings=preferredColorScheme={('dark', 'light').index(scheme)}",
        f"--window-size={max(width, 800)},{TALLEST}",
        f"--screenshot={shot}",
        "--dump-dom",
    ]
    done = subprocess.run([CHROMIUM, *flags, wrapper.as_uri()], capture_output=True, text=True, timeout=120)
    text = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert text, done.stderr
    found = json.loads(html.unescape(text[1]))
    with Image.open(shot) as image:
        pixels = np.asarray(image.convert("RGB"))[: found["height"], :width].astype(int)
    return Drawn(found, pixels)


def luminance(colour):
    """Relative luminance of sRGB in 0 to 255, as WCAG 2 defines it."""
    c = np.asarray(colour) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]


def contrast(a, b):
    high, low = np.maximum(luminance(a), luminance(b)), np.minimum(luminance(a), luminance(b))
    return (high + 0.05) / (low + 0.05)


def rgb(colour):
    return np.array(list(bytes.fromhex(colour[1:])))
