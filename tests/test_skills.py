import json
import pickle
import time

import pytest
import yaml
from fact_bank import write_fact_bank

from sdar.errors import SkillBankError
from sdar.skills import Skill, SkillBank, retrieval, seeded
from sdar.skills.files import sections_of
from sdar.types import Task

HOUSEHOLD = "conf/skills/household"
FAMILIES = {
    "pick_and_place_simple": "pick_and_place",
    "look_at_obj_in_light": "look_at_obj_in_light",
    "pick_clean_then_place_in_recep": "clean",
    "pick_heat_then_place_in_recep": "heat",
    "pick_cool_then_place_in_recep": "cool",
    "pick_two_obj_and_place": "pick_two",
}


def write(folder, files):
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder


def ours(folder, mapping, **files):
    """A bank of our format; the mapping may be given as a table or as YAML text."""
    text = mapping if isinstance(mapping, str) else yaml.safe_dump(mapping)
    return write(folder, {"mapping.yaml": text, **{f"{name}.md": content for name, content in files.items()}})


SDAR = {
    "skill_mapping.json": {
        "skill_files": {"general_skills": "general_skills.md", "heat": "heat.md", "pick_and_place": "pp.md"},
        "task_to_skill": {
            "pick_heat_then_place_in_recep": "heat",
            "pick_two_obj_and_place": "pick_and_place",
            "pick_and_place": "pick_and_place",
        },
        "task_keywords": {
            "pick_heat_then_place_in_recep": ["heat"],
            "pick_two_obj_and_place": ["put two"],
            "pick_and_place": ["put"],
        },
    },
    "general_skills.md": "Look around.\n",
    "heat.md": "Use the microwave.\n",
    "pp.md": "Carry it.\n",
    "alfworld_skills_nl.md": "All of it again, which no mapping names.\n",
}

SKILLRL = {
    "general_skills": [
        {"skill_id": "gen_001", "title": "Explore", "principle": "Search once.", "when_to_apply": "Always."},
        {"skill_id": "gen_002", "title": "Act", "principle": "Do not talk.", "when_to_apply": "Always."},
    ],
    "task_specific_skills": {
        "heat": [{"skill_id": "hea_001", "title": "Hold", "principle": "Keep it.", "when_to_apply": "At the microwave."}],
        "look_at_obj_in_light": [{"skill_id": "l", "title": "Lamp", "principle": "Go.", "when_to_apply": "Dark."}],
    },
    "common_mistakes": [
        {"mistake_id": "err_001", "description": "Walk in circles.", "why_it_happens": "x", "how_to_avoid": "Keep a list."}
    ],
    "metadata": {"source": "hand"},
}


# ------------------------------------------------------------------------------------------------------- the three formats


def test_a_folder_with_a_mapping_keeps_order_families_keywords_and_text(tmp_path):
    mapping = "b: {file: b.md, families: [f1, f2], keywords: [two words]}\na: {file: a.md, always: true}\n"
    bank = SkillBank.load(ours(tmp_path, mapping, a="\n# A\n\nbody\n\n", b="B\n"))
    assert list(bank) == [
        Skill("b", "B", ("f1", "f2"), ("two words",)),
        Skill("a", "# A\n\nbody", always=True),
    ]
    assert [s.id for s in bank.general] == ["a"]
    assert [s.id for s in bank.specific] == ["b"]
    assert len(bank) == 2 and "a" in bank and "c" not in bank and bank["b"].text == "B"


def test_a_heading_takes_one_section_with_its_subsections_and_without_its_own_line(tmp_path):
    facts = "intro\n# one\nfirst\n## inner\nmore\n# two #\n\nsecond\n\n```\n# no heading\n```\n# C\nthird\n"
    bank = SkillBank.load(ours(tmp_path, {x: {"file": f"facts.md#{x}"} for x in ("one", "two", "C")}, facts=facts))
    assert bank["one"].text == "first\n## inner\nmore"
    assert bank["two"].text == "second\n\n```\n# no heading\n```"
    assert bank["C"].text == "third"


def test_the_folder_of_the_sdar_repository_is_read(tmp_path):
    bank = SkillBank.load(write(tmp_path, SDAR))
    assert [s.id for s in bank] == ["general_skills", "heat", "pick_and_place"]
    assert bank["general_skills"].always and not bank["heat"].always
    assert bank["heat"].text == "Use the microwave."
    for family, skill in [
        ("heat", "pick_heat_then_place_in_recep"),
        ("heat", "heat"),
        ("pick_and_place", "pick_two_obj_and_place"),
    ]:
        assert skill in bank[family].families
    assert [s.id for s in bank.of_family("pick_and_place_simple")] == ["pick_and_place"]  # a key is a part of the name
    assert bank["pick_and_place"].keywords == ("put two", "put")


def test_the_search_folder_of_the_sdar_repository_serves_its_data_sets(tmp_path):
    files = {s: f"{s}.md" for s in ("direct_retrieval", "multi_hop_reasoning", "entity_attribute_lookup", "compare")}
    write(tmp_path, {"skill_mapping.json": {"skill_files": files}, **{f: "text" for f in files.values()}})
    bank = SkillBank.load(tmp_path)
    found = {d: [s.id for s in bank.of_family(d)] for d in ("nq", "popqa", "hotpotqa", "musique", "compare")}
    assert found == {
        "nq": ["direct_retrieval"],
        "popqa": ["entity_attribute_lookup"],
        "hotpotqa": ["multi_hop_reasoning"],
        "musique": ["multi_hop_reasoning"],
        "compare": ["compare"],
    }


@pytest.mark.parametrize("as_folder", [True, False])
def test_the_json_of_skillrl_becomes_one_skill_per_section(tmp_path, as_folder):
    write(tmp_path, {"claude_style_skills.json": SKILLRL})
    bank = SkillBank.load(tmp_path if as_folder else tmp_path / "claude_style_skills.json")
    assert [s.id for s in bank] == ["general_skills", "heat", "look_at_obj_in_light", "common_mistakes"]
    assert [s.id for s in bank.general] == ["general_skills", "common_mistakes"]
    assert bank["general_skills"].text == "### General Principles\n- **Explore**: Search once.\n- **Act**: Do not talk."
    assert bank["heat"].text == "### Heat Skills\n- **Hold**: Keep it.\n  _Apply when: At the microwave._"
    assert bank["common_mistakes"].text == (
        "### Mistakes to Avoid\n- **Don't**: Walk in circles.\n  **Instead**: Keep a list."
    )
    assert bank["heat"].families == ("heat", "pick_heat_then_place_in_recep")
    assert bank["look_at_obj_in_light"].families == ("look_at_obj_in_light",)


def test_the_search_file_of_skillrl_is_found_under_its_other_key(tmp_path):
    item = {"skill_id": "d", "title": "T", "principle": "P", "when_to_apply": "W"}
    write(tmp_path, {"claude_style_skills_search.json": {"query_type_skills": {"direct_retrieval": [item]}}})
    assert [s.id for s in SkillBank.load(tmp_path).of_family("triviaqa")] == ["direct_retrieval"]


def test_markdown_is_preferred_where_one_folder_has_both_formats(tmp_path):
    bank = SkillBank.load(write(tmp_path, {**SDAR, "claude_style_skills.json": SKILLRL}))
    assert bank["heat"].text == "Use the microwave."


def test_a_bank_survives_pickling():
    bank = SkillBank.load(HOUSEHOLD)
    assert list(pickle.loads(pickle.dumps(bank))) == list(bank)


# --------------------------------------------------------------------------------------------------------- choosing, telling


def test_a_keyword_is_a_whole_word_in_any_case(tmp_path):
    bank = SkillBank([Skill("hat", "h", keywords=("hat",)), Skill("two", "t", keywords=("put two",))])
    assert not bank.named_in("that what chat hats")
    assert [s.id for s in bank.named_in("a Hat, please")] == ["hat"]
    assert [s.id for s in bank.named_in("PUT  two pen; the hat.")] == ["two", "hat"]
    assert [s.id for s in bank.named_in("the hat: put two")] == ["hat", "two"]


def test_the_family_decides_and_keywords_only_where_the_bank_knows_no_family():
    bank = SkillBank(
        [Skill("f", "f", families=("fam",)), Skill("k", "k", keywords=("mug",)), Skill("g", "g", ("fam",), ("mug",), True)]
    )
    assert [s.id for s in bank.fitting(Task("1", "fam", "take the mug"))] == ["f"]
    assert [s.id for s in bank.fitting(Task("1", "other", "take the mug"))] == ["k"]
    assert not bank.fitting(Task("1", "other", "take the cup"))


def test_facts_in_a_row_form_a_paragraph_and_longer_texts_stand_apart():
    long, fact = Skill("l", "a\nb"), Skill("f", "A fact.")
    assert retrieval([fact, fact]).text == "A fact. A fact."
    assert retrieval([long, long]).text == "a\nb\n\na\nb"
    assert retrieval([long, fact, fact]).text == "a\nb\n\nA fact. A fact."
    assert retrieval([]).text == "" and retrieval([]).skill_ids == ()


def test_seeded_randomness_is_the_same_in_every_process():
    assert seeded(0, "task", 3).random() == pytest.approx(0.2736764029)
    assert seeded(1, "2").random() != seeded(12, "").random()


# ------------------------------------------------------------------------------------------------------------- shipped bank


def test_each_alfworld_family_gets_its_own_file_of_the_shipped_bank():
    bank = SkillBank.load(HOUSEHOLD)
    assert {f: [s.id for s in bank.of_family(f)] for f in FAMILIES} == {f: [s] for f, s in FAMILIES.items()}
    assert [s.id for s in bank.general] == ["general"]
    assert all(120 <= len(s.text.split()) <= 300 for s in bank)


@pytest.mark.parametrize(
    "instruction, skills",
    [
        ("put a hot mug in cabinet", {"heat", "pick_and_place"}),
        ("cool some pan and put it in stoveburner", {"cool", "pick_and_place"}),
        ("clean some knife", {"clean"}),
        ("examine the laptop with the floorlamp", {"look_at_obj_in_light"}),
        ("put two pen in dresser", {"pick_two", "pick_and_place"}),
        ("find the watch", set()),
    ],
)
def test_the_shipped_bank_serves_unknown_families_by_keyword(instruction, skills):
    assert {s.id for s in SkillBank.load(HOUSEHOLD).fitting(Task("t", "", instruction))} == skills


def test_the_shipped_bank_loads_outside_the_checkout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(SkillBank.load(HOUSEHOLD)) == 7
    assert len(SkillBank.load("skills/household")) == 7


def test_the_working_directory_comes_before_the_installed_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ours(tmp_path / HOUSEHOLD, {"mine": {"file": "mine.md"}}, mine="Mine.")
    assert [s.id for s in SkillBank.load(HOUSEHOLD)] == ["mine"]


# --------------------------------------------------------------------------------------------------------------- fact banks


def test_a_fact_bank_is_written_read_and_written_again(tmp_path):
    bank = write_fact_bank({"mug": "fridge", "desk lamp": "shelf", "no": "drawer"}, tmp_path / "facts")
    assert [(s.id, s.text, s.keywords) for s in bank] == [
        ("fact:mug", "The mug is usually in the fridge.", ("mug",)),
        ("fact:desk lamp", "The desk lamp is usually in the shelf.", ("desk lamp",)),
        ("fact:no", "The no is usually in the drawer.", ("no",)),
    ]
    assert [s.id for s in write_fact_bank({"pen": "desk"}, tmp_path / "facts")] == ["fact:pen"]


@pytest.mark.parametrize("facts", [{"a\nb": "desk"}, {"mug": ""}, {" mug": "desk"}, {"mug": "desk #1"}])
def test_a_fact_that_would_not_survive_the_file_is_refused(tmp_path, facts):
    with pytest.raises(SkillBankError, match=r"cannot be a heading and a word of a sentence\. Use one line of text"):
        write_fact_bank(facts, tmp_path)


def test_a_fact_bank_needs_facts_and_a_folder_of_its_own(tmp_path):
    with pytest.raises(SkillBankError, match=r"no facts to write: the bank would be empty\. Give at least one"):
        write_fact_bank({}, tmp_path)
    write(tmp_path, {"notes.md": "mine"})
    with pytest.raises(SkillBankError, match=r"other Markdown files \(notes\.md\).*Choose an empty folder"):
        write_fact_bank({"mug": "desk"}, tmp_path)
    assert not (tmp_path / "mapping.yaml").exists()


# ------------------------------------------------------------------------------------------------------------------- errors


def test_a_missing_bank_is_named_with_the_banks_that_exist(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = (
        r"houshold does not exist, neither in .* nor among the installed settings\. Did you mean 'conf/skills/household'\?"
    )
    with pytest.raises(SkillBankError, match=message + " Installed banks: .*conf/skills/household"):
        SkillBank.load("conf/skills/houshold")
    with pytest.raises(SkillBankError, match=r"nowhere does not exist\. Installed banks"):
        SkillBank.load(tmp_path / "nowhere")
    with pytest.raises(SkillBankError, match=r"path of the skill bank is empty\. Name a folder"):
        SkillBank.load("")


@pytest.mark.parametrize(
    "skills, message",
    [
        ([], r"here holds no skills: .* Add one, or use NoRetriever"),
        ([Skill("a", "x"), Skill("a", "y")], r"here: two skills have the id 'a'; .* Rename one"),
        ([Skill("a", " \n")], r"here: the text of skill 'a' is empty\. Write it"),
    ],
)
def test_a_bank_refuses_skills_that_cannot_work(skills, message):
    with pytest.raises(SkillBankError, match=message):
        SkillBank(skills, "here")


@pytest.mark.parametrize(
    "files, message",
    [
        ({"a.md": "x"}, r"is no skill bank: it has neither mapping\.yaml nor .*Write a mapping\.yaml"),
        ({"mapping.yaml": ""}, r"mapping\.yaml holds nothing, not entries"),
        ({"mapping.yaml": "{}"}, r"holds no skills"),
        ({"mapping.yaml": "[a]"}, r"mapping\.yaml holds a list, not entries"),
        ({"mapping.yaml": "a: {file: a.md}\nb: {file: [\n"}, r"mapping\.yaml, line 3, column 1: .*Correct the YAML there"),
        ({"mapping.yaml": "a: {file: a.md}\na: {file: a.md}"}, r"line 2, column 1: the name 'a' stands here a second time"),
        ({"mapping.yaml": "a: heat.md"}, r"skill 'a' holds the text 'heat\.md', not `\{file: heat\.md"),
        ({"mapping.yaml": "1: {file: a.md}"}, r"skill 1: the id is 1; ids are text\. Put it in quotes"),
        ({"mapping.yaml": "a: {families: [f]}"}, r"skill 'a' names no file, so it has no text\. Add `file: heat\.md`"),
        (
            {"mapping.yaml": "a: {file: a.md, familys: [f]}", "a.md": "x"},
            r"unknown key 'familys'\. Did you mean 'families'\? Keys: file, families, keywords, always",
        ),
        ({"mapping.yaml": "a: {file: a.md, keywords: heat}", "a.md": "x"}, r"keywords is 'heat'; it is a list of words"),
        ({"mapping.yaml": "a: {file: a.md, keywords: [no]}", "a.md": "x"}, r"keywords is \[False\]; .*quoting true, no or 3"),
        ({"mapping.yaml": "a: {file: a.md, always: 1}", "a.md": "x"}, r"always is 1; it is true or false"),
        (
            {"mapping.yaml": "a: {file: haet.md}", "heat.md": "x"},
            r"skill 'a' names the file 'haet\.md', which does not exist\. Did you mean 'heat\.md'\? Correct the name",
        ),
        (
            {"mapping.yaml": "a: {file: f.md#mugg}", "f.md": "# mug\nx"},
            r"names the heading 'mugg', which f\.md has 0 times\. Did you mean 'mug'\? A section needs a heading of its own",
        ),
        ({"mapping.yaml": "a: {file: f.md#mug}", "f.md": "# mug\nx\n# mug\ny"}, r"'mug', which f\.md has 2 times\. A section"),
        ({"mapping.yaml": "a: {file: f.md#mug}", "f.md": "# mug\n\n# pen\ny"}, r"skill 'a': f\.md#mug has no text\. Write it"),
        ({"mapping.yaml": "a: {file: a.md}", "a.md": " \n"}, r"skill 'a': a\.md has no text\. Write it"),
        (
            {"mapping.yaml": "a: {file: a.md}", "a.md": "x", "sub/b.md": "y"},
            r"b\.md: no entry of mapping\.yaml names this file, so nobody would ever be told its text\. Add an entry",
        ),
        (
            {"mapping.yaml": "a: {file: ../outside.md, always: true}"},
            r"mapping\.yaml: skill 'a' names the file '\.\./outside\.md', which lies outside of .*Put the file into the folder",
        ),
        ({"mapping.yaml": "a: {file: /etc/passwd}"}, r"names the file '/etc/passwd', which lies outside of"),
        ({"skill_mapping.json": '{"skill_files": {"general": "/etc/passwd"}}'}, r"'/etc/passwd', which lies outside of"),
        ({"mapping.yaml": '"\\e[31m": {file: a.md}', "a.md": "x"}, r"the id '\\x1b\[31m' holds the character U\+001B"),
        (
            {"skill_mapping.json": '{"skill_files": {"a\\nb": "a.md"}}', "a.md": "x"},
            r"the id 'a\\nb' holds the character U\+000A",
        ),
        ({"claude_style_skills.json": '{"task_specific_skills": {"\\u001b": []}}'}, r"the name '\\x1b' holds the character"),
        ({"mapping.yaml": "[" * 5000}, r"line 1, column 101: nested more than 100 deep\. Correct the YAML there"),
        ({"mapping.yaml": "a: " + "1" * 5000}, r"line 1, column 4: it holds an integer of 5000 digits"),
        ({"skill_mapping.json": "[" * 100_000}, r"skill_mapping\.json: nested more than 100 deep"),
        ({"skill_mapping.json": '{"skill_files": {\n  "a" 1}}'}, r"json: no JSON \(line 2, column 7: .*Correct it there"),
        ({"skill_mapping.json": '{"a": 1, "a": 2}'}, r"the name 'a' stands twice in one object; .*Correct it there"),
        ({"skill_mapping.json": "[]"}, r"json holds an empty list, not an object with named parts.*Name another file"),
        ({"skill_mapping.json": {}}, r"names no skill_files, so the bank has no texts\. Add"),
        ({"skill_mapping.json": {"skill_files": ["a"]}}, r"skill_files is a list; it maps names to values"),
        (
            {"skill_mapping.json": {"skill_files": {"heat": "a.md"}, "task_to_skill": {"t": "haet"}}},
            r"task_to_skill sends 't' to the skill 'haet', which skill_files does not have\. Did you mean 'heat'\?",
        ),
        (
            {"skill_mapping.json": {"skill_files": {"heat": "a.md"}, "task_keywords": {"heatt": ["x"]}}},
            r"task_keywords has words for 'heatt', which is neither in .*Did you mean 'heat'\? Correct the name",
        ),
        ({"skill_mapping.json": {"skill_files": {"heat": "a.md"}}}, r"names the file 'a\.md', which does not exist"),
        ({"claude_style_skills.json": {"metadata": {}}}, r"has none of general_skills, .*Name another file"),
        (
            {"claude_style_skills.json": {"general_skills": ["x", []]}},
            r"general_skills is a list; it is a list of one or more",
        ),
        (
            {"claude_style_skills.json": {"task_specific_skills": {"a": []}}},
            r"a is an empty list; it is a list of one or more",
        ),
        (
            {"claude_style_skills.json": {"general_skills": [{"skill_id": "gen_001", "title": "T"}]}},
            r"gen_001 has no principle, so its text would have a hole\. Write it",
        ),
        ({"claude_style_skills.json": "{}", "claude_style_skills_2.json": "{}"}, r"holds 2 files of skills \(.*\): name one"),
    ],
)
def test_a_damaged_bank_says_what_is_wrong_and_what_to_do(tmp_path, files, message):
    with pytest.raises(SkillBankError, match=message):
        SkillBank.load(write(tmp_path, files))


def test_a_file_that_is_no_text_is_refused(tmp_path):
    ours(tmp_path, "a: {file: a.md}")
    (tmp_path / "a.md").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SkillBankError, match=r"a\.md cannot be read as UTF-8 text: .*Check the file and its encoding"):
        SkillBank.load(tmp_path)


def test_a_bank_for_other_tasks_is_refused():
    bank = SkillBank(
        [Skill("heat", "Use the microwave.", ("heat",), ("hot",)), Skill("all", "Look around.", always=True)], "a bank"
    )
    shop = [Task(str(i), "shoes", "buy hot boots" if i == 0 else "buy boots") for i in range(4)]
    for tasks, served in ((shop, 1), (shop[1:], 0)):
        with pytest.raises(
            SkillBankError, match=rf"a bank has a skill for {served} of {len(tasks)} tasks .* heat, the tasks are of shoes"
        ):
            bank.check_world(tasks)
    bank.check_world([*shop, Task("h", "heat", "warm it")])  # one family in common
    bank.check_world(shop[:1])  # unknown families, served by keyword
    SkillBank([Skill("all", "Look around.", always=True)]).check_world(shop)


def test_a_link_out_of_the_folder_is_not_followed(tmp_path):
    (tmp_path / "secret").write_text("hush hush")
    (tmp_path / "bank").mkdir()
    (tmp_path / "bank/a.md").symlink_to(tmp_path / "secret")
    (tmp_path / "bank/mapping.yaml").write_text("a: {file: a.md, always: true}")
    with pytest.raises(SkillBankError, match=r"names the file 'a\.md', which lies outside of") as caught:
        SkillBank.load(tmp_path / "bank")
    assert "hush" not in str(caught.value)


HEADINGS = {
    "# a": "a", "## a b  ": "a b", "# a #": "a", "# a ##  ": "a", "# a#": "a#", "#\ta": "a", "# #a": "#a", "#a": None,
    "####### a": None, "######  a": "a", " # a": None, "# a # b": "a # b",
}  # fmt: skip


@pytest.mark.parametrize("line", HEADINGS)
def test_what_a_heading_is(line):
    assert [title for title, _ in sections_of(f"{line}\ntext")] == ([] if HEADINGS[line] is None else [HEADINGS[line]])


def test_long_headings_are_read_in_one_pass():
    begin = time.process_time()
    for middle in (" ", " #", "# ", "\t"):
        assert len(sections_of("# a" + middle * 100_000 + "b\ntext")) == 1
    assert time.process_time() - begin < 1
