"""A report in a real browser: points are hovered over and zoomed into, and nothing leaves the page."""

from __future__ import annotations

import contextlib
import html
import json
import os
import re
import shutil
import time

import pytest

from embedkit.report import ReportConfig, write_report
from tests.report.test_page import EVIL, ROWS
from tests.report.test_sweeps import write_sweep

pytest.importorskip("plotly", reason="in the dev extra")
webdriver = pytest.importorskip("selenium.webdriver", reason="in the dev extra")

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="no Chromium and chromedriver here: apt-get install chromium chromium-driver"
)
FLAGS = (
    *("--headless", "--no-first-run", "--disable-gpu", "--enable-unsafe-swiftshader", "--disable-quic"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
    *("--host-resolver-rules=MAP * ~NOTFOUND", "--window-size=1200,900"),
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Headless Chromium that notes every request; it finds no host."""
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # Chromium's own refuses root
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(120)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(bert, tmp_path_factory):
    """Returns a report of rows whose ids and labels look like markup."""
    from embedkit.cli import run

    folder = tmp_path_factory.mktemp("report")
    rows = folder / "rows.jsonl"
    long = {"id": "unbroken", "text": "x" * 300, "label": "b"}
    rows.write_text("".join(json.dumps(row) + "\n" for row in [*ROWS, long] if row["id"]), encoding="utf-8")
    asked = [
        "encode",
        str(rows),
        "-m",
        str(bert),
        "--keep",
        "label",
        "--keep",
        "text",
        "-o",
        str(folder / "out"),
        "-q",
    ]
    assert run(asked) == 0
    write_sweep(folder / "sweep")
    write_report(ReportConfig((folder / "out", folder / "sweep"), folder / "page.html", title="<b>A title</b>"))
    write_report(ReportConfig((folder / "out",), folder / "shown.html", show=("text", "label")))
    return folder / "page.html"


def wait(driver, script, *arguments, seconds=60):
    """What a script returns, as soon as that is something."""
    deadline = time.monotonic() + seconds
    while not (result := driver.execute_script(script, *arguments)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert result, script
    return result


@pytest.fixture(scope="module")
def opened(browser, page):
    """Returns the page, loaded and drawn once; no test depends on what another leaves on it."""
    browser.get("about:blank")
    browser.get_log("performance")  # of the start page
    browser.get_log("browser")
    browser.get(page.as_uri())
    wait(browser, "return document.documentElement.dataset.drawn")
    return browser


def events(driver, method):
    noted = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return [event["params"] for event in noted if event["method"] == method]


def mouse(driver, kind, x, y, button="none"):
    held = {"none": 0, "left": 1}[button]
    event = {"type": kind, "x": x, "y": y, "button": button, "buttons": held, "clickCount": held}
    driver.execute_cdp_cmd("Input.dispatchMouseEvent", event)


POINT = """
const chart = document.getElementById("output-1-map");
chart.scrollIntoView({block: "center"});
const {xaxis, yaxis} = chart._fullLayout, box = chart.getBoundingClientRect();
for (const trace of chart.data) {
  const place = trace.text.indexOf(arguments[0]);
  if (place >= 0) return [box.x + xaxis._offset + xaxis.l2p(trace.x[place]),
                          box.y + yaxis._offset + yaxis.l2p(trace.y[place])];
}
"""
NO_LABEL = "!document.querySelector('.hovertext')"
HOVERED = """
return [...document.querySelectorAll("#output-1-map .hovertext")].map((label) => label.textContent).join("|")
"""


@pytest.mark.parametrize(
    ("label", "text"),
    [
        ("long<br>label: (none)", "longlabel: (none)"),
        (
            f"{html.escape(EVIL)}<br>label: &lt;b onmouseover=alert(2)&gt;",
            f"{EVIL}label: <b onmouseover=alert(2)>",
        ),
    ],
    ids=["plain", "markup"],
)
def test_the_point_under_the_mouse_shows_its_id_and_colour_and_nothing_else(opened, label, text):
    x, y = opened.execute_script(POINT, label)
    mouse(opened, "mouseMoved", 1, 1)
    wait(opened, f"return {NO_LABEL}")  # that of the point before is gone
    mouse(opened, "mouseMoved", x - 40, y)
    mouse(opened, "mouseMoved", x, y)
    assert wait(opened, HOVERED) == text


def test_a_cell_of_the_heat_map_shows_its_score_and_interval(opened):
    x, y = opened.execute_script(
        """
        const chart = document.getElementById("sweep-1-heat");
        chart.scrollIntoView({block: "center"});
        const {xaxis, yaxis} = chart._fullLayout, box = chart.getBoundingClientRect();
        return [box.x + xaxis._offset + xaxis.l2p(1), box.y + yaxis._offset + yaxis.l2p(5)];
        """
    )
    mouse(opened, "mouseMoved", x - 9, y)
    mouse(opened, "mouseMoved", x, y)
    text = wait(opened, HOVERED.replace("output-1-map", "sweep-1-heat"))
    assert text.replace("\N{NO-BREAK SPACE}", " ") == "layer 5 meanaccuracy (%) 90.0 (88.0 to 92.0)384 dimensions"


def test_a_box_drawn_with_the_mouse_is_zoomed_into_and_a_double_click_goes_back(opened):
    ranges = "return document.getElementById('output-1-map')._fullLayout.xaxis.range.map(Number)"
    before = opened.execute_script(ranges)
    opened.execute_script(POINT, "long<br>label: (none)")  # brings the map to the middle of the screen
    box = opened.execute_script(
        "const r = document.querySelector('#output-1-map .nsewdrag').getBoundingClientRect();"
        "return [r.x + r.width / 2, r.y + r.height / 2]"
    )
    mouse(opened, "mouseMoved", box[0] - 90, box[1] - 90)
    mouse(opened, "mousePressed", box[0] - 90, box[1] - 90, "left")
    for step in (0, 90):
        mouse(opened, "mouseMoved", box[0] + step, box[1] + step, "left")
    mouse(opened, "mouseReleased", box[0] + 90, box[1] + 90, "left")
    wait(opened, f"const [low, high] = (() => {{{ranges}}})(); return high - low < {(before[1] - before[0]) / 3}")
    restored = f"const [low, high] = (() => {{{ranges}}})(); return high - low > {0.99 * (before[1] - before[0])}"
    for _ in range(20):  # on a busy machine two clicks may be too far apart to be a double-click
        for kind in ("mousePressed", "mouseReleased") * 2:
            mouse(opened, kind, *box, "left")
        with contextlib.suppress(AssertionError):
            wait(opened, restored, seconds=2)
            return
    pytest.fail("no double-click restored the range")


def test_an_id_is_found_by_the_keyboard(opened):
    field = opened.find_element("css selector", ".find input")
    field.send_keys("n7\n")
    text = wait(opened, "return document.querySelector('.find output').textContent")
    assert re.fullmatch(r"n7, b: -?[\d.]+, -?[\d.]+", text)
    arrow = wait(opened, "return document.querySelector('#output-1-map .annotation-text')?.textContent")
    assert arrow == "n7"


def test_nothing_leaves_the_page_and_nothing_in_it_runs_but_its_own(opened, page):
    requests = {event["request"]["url"] for event in events(opened, "Network.requestWillBeSent")}
    assert page.as_uri() in requests
    assert {url for url in requests if not url.startswith(("data:", "blob:"))} == {page.as_uri()}
    assert [entry["message"] for entry in opened.get_log("browser") if entry["level"] == "SEVERE"] == []
    # The page's policy holds: it can neither load a picture from elsewhere nor run a script of a row's.
    stopped = opened.execute_async_script(
        """
        const done = arguments[0];
        document.addEventListener("securitypolicyviolation", (event) => done(event.effectiveDirective));
        document.body.append(Object.assign(new Image(), {src: "https://example.org/x.png"}));
        """
    )
    assert stopped == "img-src"
    opened.execute_script("document.body.insertAdjacentHTML('beforeend', '<i onclick=\"window.ran = 1\">x</i>')")
    opened.execute_script("document.querySelector('body > i').click()")
    assert opened.execute_script("return window.ran") is None


def test_the_page_offers_no_way_to_send_a_chart_elsewhere(opened):
    titles = "return [...document.querySelectorAll('.modebar-btn')].map((button) => button.dataset.title)"
    offered = set(opened.execute_script(titles))
    assert len(offered) == 6
    assert not [title for title in offered if re.search("cloud|share|studio|plotly|edit", title, re.IGNORECASE)]


@pytest.mark.parametrize(("name", "width"), [("page.html", 400), ("shown.html", 400), ("shown.html", 1200)])
def test_it_fits_the_screen(name, width, browser, page):
    screen = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width == 400}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.get(page.with_name(name).as_uri())
    wait(browser, "return document.documentElement.dataset.drawn")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    # No text of a neighbour is cut off, or has to be scrolled to.
    cut = "(one) => one.clientWidth && one.scrollWidth > one.clientWidth + 1"
    found = browser.execute_script(f"return [...document.querySelectorAll('.records *')].filter({cut}).length")
    assert found == 0
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
