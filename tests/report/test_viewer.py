"""The viewer of episodes in a browser without a screen (Chromium and its driver): what is clicked and pressed does what is said."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from left_run import left_run

from sdar.report.gather import runs_of
from sdar.report.page import page

selenium = pytest.importorskip("selenium", reason="the viewer is tried with selenium")
from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402

DRIVER, BROWSER = shutil.which("chromedriver"), shutil.which("chromium")
pytestmark = pytest.mark.skipif(DRIVER is None or BROWSER is None, reason="chromium and chromedriver are not installed")


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[webdriver.Chrome]:
    folder = tmp_path_factory.mktemp("viewer")
    runs = runs_of([f"A={left_run(folder / 'version_0')}", f"B={left_run(folder / 'version_1', 1)}"])
    (folder / "report.html").write_text(page(runs), encoding="utf-8")
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "window-size=1400,1000"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER))) as made:
        made.get(f"file://{folder / 'report.html'}")
        yield made


@pytest.fixture(autouse=True)
def as_opened(browser: webdriver.Chrome) -> None:
    browser.refresh()


def press(browser: webdriver.Chrome, *keys: str) -> None:
    for key in keys:
        browser.find_element(By.TAG_NAME, "body").send_keys(key)


def choose(browser: webdriver.Chrome, name: str, value: str) -> None:
    browser.execute_script(
        "const e = document.getElementById(arguments[0]); e.value = arguments[1]; e.dispatchEvent(new Event('input'))",
        name,
        value,
    )


def said(browser: webdriver.Chrome, name: str) -> str:
    return browser.find_element(By.ID, name).text


def style(browser: webdriver.Chrome, pane: str = "one") -> list[str]:
    return [span.get_attribute("style") for span in browser.find_elements(By.CSS_SELECTOR, f"#{pane} .said > span")]


def test_the_page_opens_without_an_error_and_without_a_request(browser: webdriver.Chrome) -> None:
    assert said(browser, "count") == "192 of 192 episodes, 80 reached the goal"
    assert [entry for entry in browser.get_log("browser") if "favicon" not in entry["message"]] == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert asked == {browser.current_url}


@pytest.mark.parametrize(
    ("name", "value", "count"),
    [("run", "A, version_0", 96), ("what", "validation unseen", 24), ("family", "heat", 96), ("outcome", "1", 80),
     ("status", "horizon", 112), ("skill", "fact:egg", 64), ("least", "4", 24), ("most", "1", 48), ("text", "put mug 5 away", 32),
     ("text", "no such words", 0)],
)  # fmt: skip
def test_a_filter_leaves_what_fits(browser: webdriver.Chrome, name: str, value: str, count: int) -> None:
    choose(browser, name, value)
    assert said(browser, "count").startswith(f"{count} of 192 episodes")
    assert len(browser.find_elements(By.CSS_SELECTOR, "#list > div")) == count
    assert ("No episode fits" in said(browser, "one")) is (count == 0)


def test_keys_go_through_the_list_and_colour_and_open(browser: webdriver.Chrome) -> None:
    first = browser.find_element(By.CSS_SELECTOR, "[aria-selected=true]").get_attribute("id")
    press(browser, "j", "j", "k")
    assert browser.find_element(By.CSS_SELECTOR, "#list [aria-selected=true]").get_attribute("id") == "episode-1" != first
    gap = style(browser)
    press(browser, "2")
    assert browser.find_element(By.CSS_SELECTOR, "#fields [aria-checked=true]").text == "gate"
    assert style(browser) != gap and all("background-color" in s for s in style(browser))
    assert "inset" in "".join(gap)  # told without colours, too
    assert not browser.find_element(By.CSS_SELECTOR, "details.told").get_property("open")
    press(browser, "t")
    assert all(d.get_property("open") for d in browser.find_elements(By.CSS_SELECTOR, "details.told"))
    assert "The mug is in the fridge." in said(browser, "one")
    press(browser, "?")
    assert browser.find_element(By.ID, "help").is_displayed()
    press(browser, "/")
    assert browser.switch_to.active_element.get_attribute("id") == "text"
    browser.switch_to.active_element.send_keys("j")
    assert said(browser, "count").startswith("0 of 192")  # typed, and no command


def test_two_episodes_of_a_task_stand_side_by_side(browser: webdriver.Chrome) -> None:
    assert not browser.find_element(By.ID, "two").is_displayed()
    press(browser, "b")
    one, two = (browser.find_element(By.CSS_SELECTOR, f"#{pane} h3").text for pane in ("one", "two"))
    assert one == two == "task-0" and len(style(browser, "two")) > 0
    choices = [o.text for o in browser.find_elements(By.CSS_SELECTOR, "#beside option")]
    assert choices[0] == "nothing" and len(choices) == 32 and any("B, version_1, validation unseen" in c for c in choices)


def test_numbers_of_a_token_are_told_under_the_pointer(browser: webdriver.Chrome) -> None:
    viewer = browser.find_element(By.ID, "viewer")
    browser.execute_script("arguments[0].scrollIntoView()", viewer)
    ActionChains(browser).move_to_element(browser.find_elements(By.CSS_SELECTOR, "#one .said > span")[1]).perform()
    told = said(browser, "tip")
    assert told.startswith('"to "') and "gap -0.2" in told.replace("\n", " ") and "old_logp" in told


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_can_be_read_in_light_and_dark(browser: webdriver.Chrome, scheme: str) -> None:
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
    colours = browser.execute_script("const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]")
    fore, back = (sum(map(int, c[c.index("(") + 1 : -1].split(",")[:3])) / 765 for c in colours)
    assert abs(fore - back) > 0.7 and (back < 0.3) is (scheme == "dark")


def test_a_narrow_window_has_nothing_beyond_its_edge(browser: webdriver.Chrome) -> None:
    browser.set_window_size(520, 900)
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    browser.set_window_size(1400, 1000)


def test_the_folder_is_only_read(browser: webdriver.Chrome) -> None:
    folder = Path(browser.current_url.removeprefix("file://")).parent / "version_0"
    assert sorted(p.name for p in folder.iterdir()) == [
        "alarms.jsonl",
        "config.yaml",
        "episodes",
        "metrics.csv",
        "validation.jsonl",
    ]
