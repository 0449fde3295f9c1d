"""The published skill banks, where they are: what docs/skills.md says of them, and that tasks find skills in them."""

import re
import tarfile
from pathlib import Path

import pytest

from sdar.retrievers import KeywordRetriever
from sdar.skills import SkillBank
from sdar.types import Task

ROOT = Path(__file__).parents[1]
ARCHIVE = ROOT.parent / "shared" / "data" / "skill_banks.tar.xz"
WORLDS = {"alfworld": "household", "webshop": "webshop", "search": "search"}
PAGE = (ROOT / "docs/skills.md").read_text(encoding="utf-8")
ALFWORLD = ["pick_and_place_simple", "look_at_obj_in_light", "pick_two_obj_and_place"]
ALFWORLD += [f"pick_{what}_then_place_in_recep" for what in ("clean", "heat", "cool")]
QUESTIONS = ["nq", "triviaqa", "popqa", "hotpotqa", "2wikimultihopqa", "musique", "bamboogle"]


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    if not ARCHIVE.exists():
        pytest.skip(f"the published banks are not there ({ARCHIVE.name})")
    folder = tmp_path_factory.mktemp("published")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder / "skill_banks"


def banks(published: Path, world: str) -> dict[str, SkillBank]:
    [file] = (published / "skillrl" / world).glob("claude_style_skills*.json")
    ours = f"conf/skills/{WORLDS[world]}"
    paths = {f"`{ours}`": ours, f"SDAR, {world}": published / "sdar" / world, f"SkillRL, {world}": file}
    return {name: SkillBank.load(path) for name, path in paths.items()}


def line(name: str, bank: SkillBank, others: list[SkillBank]) -> str:
    """A row of the page's table."""
    of = {family for s in bank for family in s.families}
    elsewhere = {family for other in others for s in other for family in s.families}
    extra = sorted(f for f in of - elsewhere if f not in QUESTIONS)
    size, general = sum(len(s.text) for s in bank), sum(len(s.text) for s in bank.general)
    return f"| {name} | {len(bank.skills)} | {size:,} | {general:,} | {', '.join(extra)} |"


@pytest.mark.parametrize("world", WORLDS)
def test_the_page_says_how_the_banks_differ(published: Path, world: str) -> None:
    found = banks(published, world)
    ours, *theirs = found.values()
    rows = [line(name, bank, theirs if bank is ours else [ours]) for name, bank in found.items()]
    assert [row for row in rows if re.sub(r" +", " ", row) not in re.sub(r" +", " ", PAGE)] == []


@pytest.mark.parametrize("world", WORLDS)
def test_sdars_repository_holds_skillrls_json(published: Path, world: str) -> None:
    [theirs] = (published / "skillrl" / world).glob("*.json")
    assert theirs.read_bytes() == (published / "sdar" / world / theirs.name).read_bytes()
    assert f"`SkillRL/memory_data/{world}/{theirs.name}`" in PAGE and f"`SDAR/skills/{world}`" in PAGE


def test_each_kind_of_task_finds_a_skill_of_its_own_in_all_of_them(published: Path) -> None:
    for world, families in (("alfworld", ALFWORLD), ("search", QUESTIONS)):
        for bank in banks(published, world).values():
            assert all(bank.of_family(family) for family in families)
    two = [bank.of_family("pick_two_obj_and_place")[0].id for bank in banks(published, "alfworld").values()]
    assert two == ["pick_two", "pick_and_place", "pick_and_place"]


def test_on_webshop_words_choose_in_sdars_folder_and_in_ours_and_not_in_skillrls_json(published: Path) -> None:
    ours, sdar, skillrl = banks(published, "webshop").values()
    shoes = Task("t", "webshop", "find me a running shoe in blue, below 50 dollars")
    chosen = []
    for bank in (ours, sdar, skillrl):
        retriever = KeywordRetriever("conf/skills/webshop")
        retriever.bank = bank
        chosen.append([i for i in retriever.retrieve(shoes).skill_ids if not bank[i].always])
    assert chosen == [["footwear"], ["footwear"], []]
