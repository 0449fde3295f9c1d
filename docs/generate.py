"""Write the tables of published numbers in docs/methods and conf/README.md from conf/published.yaml, and those of our own runs from what
`sdar compare ... --json` wrote to benchmarks/results.

    python docs/generate.py            # writes
    python docs/generate.py --check    # exit code 1 if a page is not what would be written

What stands between two marks of a page is written; everything else is by hand.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from sdar.evaluate.tables import differences as differences_of
from sdar.evaluate.tables import success
from sdar.reading import read_yaml

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "conf" / "published.yaml"
README = ROOT / "conf" / "README.md"
WORLDS = {"alfworld": "ALFWorld", "search": "Search-QA", "webshop": "WebShop"}
LINES = {  # of conf/README.md: keys of each
    "tasks × attempts a rollout": ("data.tasks_per_step", "data.group_size"),
    "response tokens; temperature": ("model.sampler.max_new_tokens", "model.sampler.temperature"),
    "past exchanges in a prompt; actions": ("data.history", "data.env.horizon"),
    "learning rate; share of warm-up": ("model.optimizer.lr", "warmup_share"),
    "KL; entropy; invalid action": ("model.kl_coef", "model.entropy_coef", "model.invalid_penalty"),
    "rollouts": ("rollouts",),
    "validation every; temperature": ("trainer.val_check_interval", "model.val_sampler.temperature"),
}


def load() -> dict[str, Any]:
    """The table, each number with its source and each run with the shared numbers that it does not replace."""
    table = read_yaml(TABLE)
    for part in [*table["shared"].values(), *table["runs"]]:
        part["numbers"] = [{"source": part["source"], **number} for number in part["numbers"]]
    for run in table["runs"]:
        own = {number.get("key") or number["what"] for number in run["numbers"]}
        shared = [n for name in run.get("with", []) for n in table["shared"][name]["numbers"]]
        run["all"] = run["numbers"] + [n for n in shared if (n.get("key") or n["what"]) not in own]
    return table


def told(value: Any) -> str:
    """A value as a reader writes it."""
    if isinstance(value, list):
        return ", ".join(map(told, value)) or "[]"
    words = {"None": "null", "True": "true", "False": "false"}
    return words.get(str(value), f"{value:g}" if isinstance(value, float) else str(value))


def differences(numbers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [n for n in numbers if "ours" in n]


def where(table: dict[str, Any], number: dict[str, Any]) -> str:
    """File and line of a number."""
    source = table["sources"][number["source"]]
    if "paper" in source:
        return source["paper"]
    return Path(source["file"]).name + (f":{number['line']}" if "line" in number else "")


def overlays(number: dict[str, Any], world: str) -> list[str]:
    """The files of conf/reference that set a number as published, in a world (its file's name)."""
    given = number.get("overlay", [])
    return [name.replace("E", world) for name in ([given] if isinstance(given, str) else given)]


def rows(table: dict[str, Any], runs: list[tuple[str, str, list[dict[str, Any]]]]) -> list[str]:
    """The rows of a table of differences; what several runs share stands once."""
    seen: dict[tuple[str, ...], tuple[list[str], dict[str, None]]] = {}
    for title, world, numbers in runs:
        for n in differences(numbers):
            name = n["what"] if "what" in n else f"`{n['key']}`"
            published = f"{told(n.get('published', n.get('value')))} ({where(table, n)})"
            titles, files = seen.setdefault((name, published, told(n["ours"]), n["because"]), ([], {}))
            titles.append(title)
            files |= dict.fromkeys(
                f"[{f}](CONF/reference/{f}.yaml)" for w in WORLDS if world in ("*", w) for f in overlays(n, w)
            )
    return [
        f"| {', '.join(titles)} | {' | '.join(cells)}{'; theirs: ' if files else ''}{', '.join(files)} |"
        for cells, (titles, files) in seen.items()
    ]


def world_of(run: dict[str, Any]) -> str:
    """The name of the file of a run's world."""
    return run["files"][0].removeprefix("env/")


def common(table: dict[str, Any]) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """What the runs of the code base share: of all worlds, then of each."""
    shared = table["shared"]
    return [("all", "*", shared["backbone"]["numbers"]), *[(WORLDS[w], w, shared[w]["numbers"]) for w in WORLDS]]


def listed(table: dict[str, Any], name: str) -> list[str]:
    """The differences of a method's page."""
    every = [run for run in table["runs"] if run["page"] == name]
    runs = [(run["world"], world_of(run), run["numbers"]) for run in every]
    equal = sum(len(run["all"]) - len(differences(run["all"])) for run in every)
    lines = rows(table, (common(table) if name == "grpo" else []) + runs)
    used = {n["source"] for run in every for n in run["numbers"]}
    sources = [table["sources"][s] for s in used]
    files = sorted({s.get("paper") or f"{s['repository']} at {s['commit']}" for s in sources})
    text = [
        f"{equal} published numbers are compared with the composed settings and agree; these differ. Each stands with its line in",
        f"[conf/published.yaml](../../conf/published.yaml), read in {', '.join(files)}.",
    ]
    if name != "grpo" and any(run.get("with") for run in every):
        text[-1] += " Those that all methods of the code base share are on [grpo](grpo.md#against-the-public-code)."
    head = ["", "| run | setting | published | here | why, and how to have theirs |", "|---|---|---|---|---|"]
    return text + (head + lines if lines else [])


def compared(table: dict[str, Any]) -> list[str]:
    """The table of shared numbers of conf/README.md, and what differs from it."""
    shared = table["shared"]
    values = {
        world: {n["key"]: n["value"] for name in ("backbone", world) for n in shared[name]["numbers"] if "key" in n}
        for world in WORLDS
    }
    lines = [f"| | {' | '.join(WORLDS.values())} |", "|---|---|---|---|"]
    for name, keys in LINES.items():
        cells = ["; ".join(told(values[world].get(key, "none")) for key in keys) for world in WORLDS]
        lines.append(f"| {name} | {' | '.join(c.replace('; ', ' × ') if '×' in name else c for c in cells)} |")
    head = ["| run | setting | published | here | why, and how to have theirs |", "|---|---|---|---|---|"]
    return [*lines, "", "What differs from them:", "", *head, *rows(table, common(table))]


def measured(file: str) -> list[str]:
    """The runs that a file of `sdar compare ... --json` holds, and their differences, as the command prints them."""
    found = json.loads((ROOT / file).read_text(encoding="utf-8"))
    pieces = (piece for panel in found["panels"] for piece in (*success(panel), *differences_of(panel)))
    return "\n\n".join(pieces).split("\n")


def filled(text: str, mark: str, lines: list[str], conf: str) -> str:
    """A page with `lines` between its marks."""
    begin, end = f"<!-- {mark}: written by docs/generate.py -->", f"<!-- end of {mark} -->"
    body = "\n".join(lines).replace("CONF", conf)
    new, count = re.subn(re.escape(begin) + ".*?" + re.escape(end), lambda _: f"{begin}\n{body}\n{end}", text, flags=re.DOTALL)
    if count != 1:
        raise SystemExit(
            f"A page has {count} places between\n{begin}\n{end}\nand must have one: put both lines where the table goes."
        )
    return new


def pages(table: dict[str, Any]) -> dict[Path, str]:
    """Every page with what stands in the table, and in the files of results that it names, now."""
    found = {}
    for path in (ROOT / "README.md", ROOT / "LOG.md"):
        found[path] = path.read_text(encoding="utf-8")
        for file in re.findall(r"<!-- sdar compare (\S+): written by docs/generate\.py -->", found[path]):
            found[path] = filled(found[path], f"sdar compare {file}", measured(file), ".")
    found |= {README: filled(README.read_text(encoding="utf-8"), "published numbers", compared(table), ".")}
    for name in sorted({run["page"] for run in table["runs"]}):
        path = ROOT / "docs" / "methods" / f"{name}.md"
        found[path] = filled(path.read_text(encoding="utf-8"), "numbers", listed(table, name), "../../conf")
    return found


def main(args: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, tell which pages are old")
    check = parser.parse_args(args).check
    old = [path for path, text in pages(load()).items() if path.read_text(encoding="utf-8") != text]
    for path in old:
        print(f"{path.relative_to(ROOT)} {'is old' if check else 'written'}")
        if not check:
            path.write_text(pages(load())[path], encoding="utf-8")
    return int(check and bool(old))


if __name__ == "__main__":
    sys.exit(main())
