"""report.html in a real browser: it fits a phone, follows light and dark, and its controls do what they say."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess

import pytest

from unmask.evaluation.results import Results
from unmask.report.page import PAGE, write_page
from unmask.report.style import PALETTE

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ("background-networking", "component-update", "gpu", "quic", "sync")
FLAGS = ["--headless", "--no-sandbox", "--no-first-run", "--hide-scrollbars"]
FLAGS += [f"--disable-{name}" for name in QUIET]
DARK, LIGHT = 0, 1  # of Chromium's preferredColorScheme
PROBE = """<script>
const slider = document.getElementById("replay-step"), play = document.getElementById("replay-play");
const drawn = () => [...document.querySelectorAll("[data-against]")].filter((f) => f.offsetParent)
  .map((f) => f.dataset.against);
const at = (step) => {
  slider.value = step;
  slider.dispatchEvent(new Event("input"));
  return ["masked", "fresh", "wrong"].map((name) => document.querySelectorAll(".replays ." + name).length);
};
const told = {
  width: innerWidth, content: document.documentElement.scrollWidth,
  background: getComputedStyle(document.body).backgroundColor,
  ticks: getComputedStyle(document.querySelector(".plot svg text")).fill,
  first: drawn(), steps: [0, 1, 2].map(at),
};
document.getElementById("against-seconds").click();
told.second = drawn();
play.click();
told.playing = [play.textContent, Number(slider.value)];
parent.postMessage(JSON.stringify(told), "*");
</script>"""
# A window of Chromium is 500 pixels wide at least, a frame is not.
FRAME = """<script>onmessage = (event) => { document.body.dataset.told = event.data; };</script>
<iframe src="%s" style="border: 0; width: %dpx; height: 900px"></iframe>"""
TRACE = {
    "start": ["4", None, None],
    "steps": [[[1, "5"]], [[2, "9"]]],
    "truth": ["4", "5", "6"],
    "columns": 3,
    "exact": True,
}


def _records():
    """One seed of two arms with long names, many strata and a trace."""
    for arm, values in (("standard", (0.0, 0.3, 0.6, 0.6)), ("an-arm-with-quite-a-long-name", (0.0, 0.6, 0.9, 0.9))):
        curve = [
            {
                "step": 100 * i,
                "seconds": 2.5 * i,
                "solved": value,
                "interval": [value - 0.05, value + 0.05],
                "strata": {f"stratum {k}": {"solved": value, "interval": [0.0, 1.0]} for k in range(9)},
            }
            for i, value in enumerate(values)
        ]
        yield {"study": "s", "control": "standard", "arm": arm, "seed": 1, "steps": 300, "role": "compare"} | {
            "config": {"data": {"type": "x" * 60}, "model": "y" * 500},
            "training": {},
            "curve": curve,
            "finals": {},
            "trace": TRACE,
        }


def _rgb(colour: str) -> str:
    return f"rgb({', '.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))})"


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
@pytest.mark.parametrize("scheme", [DARK, LIGHT])
@pytest.mark.parametrize("width", [390, 1280])
def test_page_in_a_browser(tmp_path, width, scheme):
    page = write_page(Results.of(list(_records())), tmp_path)
    page.write_text(page.read_text().replace("</body>", PROBE + "</body>"))
    (tmp_path / "frame.html").write_text(f"<body>{FRAME % (PAGE, width)}</body>")
    options = [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,900", "--virtual-time-budget=3000"]
    options += [f"--blink-settings=preferredColorScheme={scheme}", "--dump-dom", f"file://{tmp_path}/frame.html"]
    ended = subprocess.run([str(CHROMIUM), *FLAGS, *options], capture_output=True, text=True, timeout=180)
    found = re.search(r'data-told="([^"]*)"', ended.stdout)
    assert found, ended.stderr[-2000:]
    told = json.loads(html.unescape(found[1]))
    assert told["width"] == width
    assert told["content"] <= width
    night = scheme == DARK
    assert told["background"] == _rgb(PALETTE["paper"][night])
    assert told["ticks"] == _rgb(PALETTE["faint"][night])
    assert set(told["first"]) == {"step"}
    assert set(told["second"]) == {"seconds"}
    assert told["steps"] == [[4, 0, 0], [2, 2, 0], [0, 2, 2]]
    assert told["playing"] == ["Pause", 0]
