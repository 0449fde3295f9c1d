"""The viewer of a report in a browser without a screen: how long 1,000 episodes take to open, and the next one to be shown.

    python benchmarks/report.py RUN [--episodes 1000] [--quick]

RUN is a run's folder with stored episodes; they are repeated until there are as many as asked for. Needs chromium,
chromedriver and selenium.
Limits of the project: open in 2 s, switch in 0.1 s, on two cores.
"""

import json
import shutil
import statistics
import tempfile
import time
from functools import cached_property
from itertools import cycle, islice
from pathlib import Path

import measuring

SWITCH = """
const took = [];
for (let i = 0; i < arguments[0]; i++) {
  const before = performance.now();
  document.dispatchEvent(new KeyboardEvent("keydown", {key: arguments[1][i % arguments[1].length]}));
  document.body.getBoundingClientRect();
  took.push(performance.now() - before);
}
return took;
"""


def main() -> None:
    parser = measuring.arguments(__doc__)
    parser.add_argument("run", nargs="?")
    parser.add_argument("--episodes", type=int, default=1000)
    given = parser.parse_args()
    measuring.begin(given)
    try:
        from selenium import webdriver
    except ImportError as error:
        raise measuring.Missing("selenium is not installed") from error
    if given.run is None:
        raise measuring.Missing("no run was named")
    from sdar.report import gather, page

    class Repeated(gather.Run):
        @cached_property
        def episodes(self):  # type: ignore[override]
            return list(islice(cycle(gather.Run(self.folder, self.label).episodes), given.episodes))

    runs = [Repeated(run.folder, run.label) for run in gather.runs_of([given.run])]
    begin = time.perf_counter()
    text = page.page(runs, given.episodes)
    written = time.perf_counter() - begin
    options = webdriver.ChromeOptions()
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "window-size=1400,1000"):
        options.add_argument(f"--{argument}")
    opened: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "report.html")
        file.write_text(text, encoding="utf-8")
        with webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver"))) as browser:
            for _ in range(given.rounds):
                browser.get(f"file://{file}")
                told = json.loads(
                    browser.execute_script("return JSON.stringify(performance.getEntriesByType('navigation')[0])")
                )
                opened.append(told["loadEventEnd"] / 1000)
            listed = browser.execute_script("return document.querySelectorAll('#list > div').length")
            switched = [t / 1000 for t in browser.execute_script(SWITCH, 100, ["j"])]
            coloured = [t / 1000 for t in browser.execute_script(SWITCH, 20, ["2", "1"])]
    rows = [
        ["opened", _spread(opened), "2"],
        ["next episode", _spread(switched), "0.1"],
        ["other colours", _spread(coloured), "0.1"],
    ]
    measuring.tell(
        given,
        "The viewer of a report",
        f"{listed} episodes, {len(text.encode()) / 1e6:.1f} MB, written in {written:.1f} s; Chromium without a screen.",
        measuring.table(["seconds", "median [least, most]", "limit"], rows),
    )


def _spread(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.3f} [{min(seconds):.3f}, {max(seconds):.3f}]"


if __name__ == "__main__":
    measuring.run(main)
