"""The page in a real browser: it draws, answers, loads nothing and runs no foreign script."""

import json
import shutil
from pathlib import Path

import pytest

from latewood.report import write_report

CHROMIUM = Path("/usr/bin/chromium")
DRIVER = Path("/usr/bin/chromedriver")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
EVIL = "</script><script>window.hit=1</script><img src=x onerror=window.hit=1><b>'\"&amp;"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not CHROMIUM.exists() or not DRIVER.exists():
        pytest.skip(f"{CHROMIUM} and {DRIVER} are not both installed")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    profile = tmp_path_factory.mktemp("profile")
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(executable_path=str(DRIVER))
    driver = webdriver.Chrome(options=options, service=service)
    driver.get("about:blank")
    yield driver
    driver.quit()
    shutil.rmtree(profile, ignore_errors=True)


@pytest.fixture(scope="module")
def visit(browser, tmp_path_factory):
    """Opens the report of runs, waits for its figures, and returns the browser."""
    from selenium.webdriver.support.ui import WebDriverWait

    def visit(*runs, width=1280, theme="light"):
        browser.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"features": [{"name": "prefers-color-scheme", "value": theme}]},
        )
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
        )
        path = write_report(runs, tmp_path_factory.mktemp("report") / "report.html")
        for log in ("performance", "browser"):
            browser.get_log(log)
        browser.get(path.as_uri())
        WebDriverWait(browser, 60).until(
            lambda b: b.execute_script("return document.documentElement.dataset.figures")
        )
        return browser

    return visit


@pytest.fixture(scope="module")
def comparison(visit, make_shared_run):
    """A comparison of two runs, which the tests that ask for it use one after the other."""
    return visit(make_shared_run("one", seed=1), make_shared_run("two", seed=2))


def requested(browser):
    """Addresses that the page asked for, other than itself and what it holds inline."""
    page = browser.current_url
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = {
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
        and message["params"].get("documentURL") == page
    }
    assert page in urls
    return {url for url in urls - {page} if not url.startswith(("data:", "blob:"))}


COUNT = """
const plots = [...document.querySelectorAll(".plot")];
const open = plots.filter((plot) => !plot.closest("details:not([open])"));
const drawn = open.filter((plot) => plot.querySelector(".main-svg .trace, .main-svg .hm"));
return [open.length, drawn.length];
"""
WIDTH = "return document.documentElement.scrollWidth"
BACKGROUND = "return getComputedStyle(document.body).backgroundColor"
ENTER = "\ue007"


def test_draws_everything_and_loads_nothing(comparison):
    assert comparison.get_log("browser") == []
    assert requested(comparison) == set()
    plots, drawn = comparison.execute_script(COUNT)
    assert plots == drawn > 10
    assert comparison.execute_script(WIDTH) <= 1280
    assert comparison.execute_script(BACKGROUND) == "rgb(250, 247, 241)"


def test_no_button_sends_data_away(comparison):
    # Plotly's own bar has one that uploads the figure.
    assert comparison.execute_script("return document.querySelectorAll('.modebar-btn').length") == 0


def test_axes_become_logarithmic(comparison):
    section = "document.querySelector('input.log').closest('section')"
    kind = f"return {section}.querySelector('.plot')._fullLayout.yaxis.type"
    assert comparison.execute_script(kind) == "linear"
    comparison.find_element("css selector", "input.log").send_keys(" ")
    assert comparison.execute_script(kind) == "log"


def test_recipe_unfolds_by_key(comparison):
    fold = comparison.find_element("css selector", "details:not(.group)")
    assert not fold.find_element("css selector", "pre").is_displayed()
    fold.find_element("css selector", "summary").send_keys(ENTER)
    assert fold.find_element("css selector", "pre").is_displayed()
    assert 'name = "continuous_sparsification"' in fold.text


def test_legend_switches_a_run(comparison):
    from selenium.webdriver.support.ui import WebDriverWait

    plot = comparison.find_element("css selector", ".plot:has(.legendtoggle)")
    visible = "return arguments[0]._fullData.filter((trace) => trace.visible === true).length"
    before = comparison.execute_script(visible, plot)
    toggle = plot.find_element("css selector", ".legendtoggle")
    comparison.execute_script(
        "for (const kind of ['mousedown', 'mouseup'])"
        "arguments[0].dispatchEvent(new MouseEvent(kind, {bubbles: true}))",
        toggle,
    )
    WebDriverWait(comparison, 10).until(lambda b: b.execute_script(visible, plot) < before)


def test_folded_figures_are_drawn_when_unfolded(comparison):
    from selenium.webdriver.support.ui import WebDriverWait

    fold = comparison.find_elements("css selector", "details.group")[-2]
    drawn = "return arguments[0].querySelectorAll('.plot:has(.trace)').length"
    assert comparison.execute_script(drawn, fold) == 0
    fold.find_element("css selector", "summary").send_keys(ENTER)
    WebDriverWait(comparison, 10).until(lambda b: b.execute_script(drawn, fold) == 4)


def test_phone_in_the_dark(visit, make_run):
    browser = visit(make_run(), width=420, theme="dark")
    assert browser.get_log("browser") == []
    plots, drawn = browser.execute_script(COUNT)
    assert plots == drawn > 10
    assert browser.execute_script(WIDTH) <= 420
    assert browser.execute_script(BACKGROUND) == "rgb(22, 18, 14)"
    # On paper the page is light, and nothing is folded away.
    browser.execute_script(
        "addEventListener('beforeprint', () => {"
        "window.printed = [getComputedStyle(document.documentElement).getPropertyValue('--ink'),"
        "[...document.querySelectorAll('details')].every((fold) => fold.open)]});"
    )
    assert browser.print_page().startswith("JVBERi")
    assert browser.execute_script("return window.printed") == ["#231c15", True]
    assert browser.execute_script("return document.documentElement.dataset.printing") is None


def test_foreign_scripts_are_inert(visit, make_run):
    browser = visit(make_run(name="<img src=x onerror=hit=1>", text=lambda words: words + EVIL))
    assert browser.execute_script("return window.hit === undefined")
    assert browser.execute_script("return document.querySelectorAll('img[src=x]').length") == 0
    assert browser.get_log("browser") == []
    assert requested(browser) == set()
    ticks = browser.execute_script(
        "return [...document.querySelectorAll('.ytick text')].map((tick) => tick.textContent)"
    )
    assert any(tick.startswith("stem.weight") for tick in ticks)
    assert browser.execute_script("return document.querySelectorAll('.ytick text b').length") == 0
    names = browser.execute_script(
        "return [...document.querySelectorAll('figcaption b')].map((name) => name.textContent)"
    )
    assert f"stem.weight{EVIL}" in names
    # Should a script get into the page all the same, the browser refuses to run it.
    browser.execute_script(
        "const script = document.createElement('script'); script.textContent = 'window.hit = 1';"
        "document.body.append(script);"
    )
    assert browser.execute_script("return window.hit === undefined")
