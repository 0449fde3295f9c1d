"""How a world is told and how a response is read."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdar.envs import BriefProtocol, CompactProtocol, CountedThinkActProtocol, HouseholdEnv, ThinkActProtocol, WebShopProtocol
from sdar.envs.protocols import History
from sdar.errors import ConfigError
from sdar.parts import Protocol
from sdar.types import Task

TASK = Task("t", "f", "put a mug in shelf")
BEGIN = "You see a shelf 1.\n\nYour task is to: put a mug in shelf."
COMMANDS = ["go to shelf 1", "help", "inventory", "look"]
COMMAND = st.text("abcdefghijklmnopqrstuvwxyz 0123456789", max_size=40).map(lambda a: " ".join(a.split()) or "look")


@pytest.mark.parametrize("protocol", [CompactProtocol(), ThinkActProtocol(), CountedThinkActProtocol()])
@given(action=COMMAND)
def test_the_response_of_a_demonstration_is_read_back(protocol: Protocol, action: str) -> None:
    assert protocol.parse(protocol.write(action), COMMANDS) == (action, True)


RESPONSES = {
    "<think>The mug.</think><action>go to shelf 1</action>": ("go to shelf 1", True),
    "<think>\nlines\n</think>\n\n<action>\n look \n</action> and more": ("look", True),
    "<think></think><action>LOOK</action>": ("look", True),  # the world's commands are in lower case
    "<think>a</think><ACTION>look</ACTION>": ("look", True),
    "<THINK>a</THINK><action>look</action>": ("look", False),
    "<think>a</think><action>fly</action>": ("fly", True),  # whether it is admissible is the world's business
    "<think>a</think><action></action>": ("", True),
    "<think>a</think><action>look</action><action>inventory</action>": ("look", True),
    "<action>look</action>": ("look", False),
    "<think>a<action>look</action>": ("look", False),
    "a</think><action>look</action>": ("look", False),
    "</think><think><action>look</action>": ("look", True),  # their order is not looked at
    "<think>杯子</think><action>look</action>": ("look", False),
    "<think>caf\u00e9 \u3042</think><action>look</action>": ("look", True),  # accents and kana are no CJK ideographs
    "<think>a</think>": ("<think>a</think>", False),
    "<think>a</think> I would like to go to Shelf 1": ("i would like to go to shelf 1", False),  # the last 30 characters
    "<think>a</think><action>go to shelf 1": ("hink><action>go to shelf 1"[-30:], False),
    "look": ("look", False),
    "": ("", False),
}


@pytest.mark.parametrize("text", RESPONSES)
def test_responses_are_read_by_the_rules_of_verl_agent(text: str) -> None:
    action, valid = ThinkActProtocol().parse(text, COMMANDS)
    assert valid == RESPONSES[text][1]
    assert action == RESPONSES[text][0] or (not valid and action == text.lower()[-30:].strip())


def test_a_compact_response_is_the_command_itself() -> None:
    assert CompactProtocol().parse("  go to shelf 1\n", []) == ("go to shelf 1", True)


def test_a_prompt_names_the_admissible_commands_but_not_help() -> None:
    protocol = ThinkActProtocol()
    [first] = protocol.opening(TASK, BEGIN, COMMANDS)
    [later] = protocol.window(TASK, [("seen", "look")], "now", COMMANDS)
    for text in (first["content"], later["content"], protocol.answer("now", COMMANDS)):
        assert "Your admissible actions: ['go to shelf 1', 'inventory', 'look']." in text
        assert "'help'" not in text and text.endswith(protocol.TAGS)
    [unlisted] = ThinkActProtocol(list_admissible=False).opening(TASK, BEGIN, COMMANDS)
    assert "admissible actions:" not in unlisted["content"]


def test_the_prompts_of_a_turn_are_these() -> None:
    protocol = ThinkActProtocol(role="You are a cook.")
    assert protocol.opening(TASK, BEGIN, COMMANDS[:1]) == [
        {
            "role": "user",
            "content": f"You are a cook.\nYou now see: {BEGIN}\n"
            f"Your admissible actions: ['go to shelf 1'].\n\n{protocol.TAGS}",
        }
    ]
    assert protocol.window(TASK, [("It's dark.", "look"), ("b", "inventory")], "c", ["look"]) == [
        {
            "role": "user",
            "content": "You are a cook. Your task is to: put a mug in shelf\nThe last 2 observations and actions were:\n"
            '[Observation: "It\'s dark.", Action: "look"]\n[Observation: "b", Action: "inventory"]\n'
            f"You now see: c\nYour admissible actions: ['look'].\n\n{protocol.TAGS}",
        }
    ]
    assert protocol.window(TASK, [], BEGIN, COMMANDS) == protocol.opening(TASK, BEGIN, COMMANDS)


def test_compact_prompts_are_the_sentences_of_the_world() -> None:
    protocol = CompactProtocol()
    assert protocol.opening(TASK, BEGIN, COMMANDS) == [{"role": "user", "content": BEGIN}]
    assert protocol.answer("now", COMMANDS) == "now"
    [later] = protocol.window(TASK, [("a", "look"), ("b", "inventory")], "c", COMMANDS)
    assert later["content"] == "Your task is to: put a mug in shelf.\na\n> look\nb\n> inventory\nc"
    [early] = protocol.window(TASK, [(BEGIN, "look")], "c", COMMANDS)
    assert early["content"] == f"{BEGIN}\n> look\nc"  # the task is not said twice


@pytest.mark.parametrize("protocol", [CompactProtocol(), ThinkActProtocol(), CountedThinkActProtocol()])
@pytest.mark.parametrize("history", [[], History([("seen", "look")], taken=1)])
def test_every_prompt_says_what_the_task_is(protocol: Protocol, history: list[tuple[str, str]]) -> None:
    """Also without a history, and in a world whose observations do not repeat it."""
    for observation in ("nothing new", BEGIN):
        [message] = protocol.window(TASK, history, observation, COMMANDS)
        assert "put a mug in shelf" in message["content"]
    [message] = protocol.opening(TASK, "a world that does not say it", COMMANDS)
    assert "put a mug in shelf" in message["content"]


def test_the_household_is_told_with_its_task_once() -> None:
    env = HouseholdEnv(receptacles=6)
    task = env.task(env.task_ids("train", 1, 0)[0])
    observation = env.reset(task)
    for protocol in (CompactProtocol(), ThinkActProtocol()):
        [message] = protocol.opening(task, observation, env.admissible())
        assert message["content"].count(task.instruction) == 1


def test_a_role_that_says_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"protocol.role is empty: .*Give one sentence"):
        ThinkActProtocol(role=" ")


HISTORY = [("It's dark.", "look"), ("b", "inventory")]


def test_counted_prompts_say_how_many_steps_were_taken_and_number_those_they_show() -> None:
    protocol = CountedThinkActProtocol(role="You are a cook.")
    assert protocol.opening(TASK, BEGIN, COMMANDS) == ThinkActProtocol(role="You are a cook.").opening(TASK, BEGIN, COMMANDS)
    [message] = protocol.window(TASK, History(HISTORY, taken=7), "c", ["look"])
    assert message["content"] == (
        "You are a cook. Your task is to: put a mug in shelf\n"
        "You have taken 7 step(s) before this one. The last 2, with what you saw and did:\n"
        '[Observation 6: "It\'s dark.", Action 6: "look"]\n[Observation 7: "b", Action 7: "inventory"]\n'
        f"This is step 8. You now see: c\nYour admissible actions: ['look'].\n\n{protocol.TAGS}"
    )
    with pytest.raises(
        ConfigError, match=r"templates count steps \(number, step, taken\), but it was given 2 exchanges without"
    ):
        protocol.window(TASK, HISTORY, "c", ["look"])  # two of how many?


def test_the_texts_of_a_prompt_can_be_replaced() -> None:
    protocol = ThinkActProtocol(
        role="R.",
        first="{role} {observation} {{choose}} {admissible}",
        later="{task}|{shown}/{taken}|{history}|{step}|{situation}",
        situation="<{observation}>{choice} {format}",
        exchange="{number}:{observation}->{action};",
    )
    [first] = protocol.opening(TASK, "o{x}", COMMANDS)  # what fills a slot is no template
    assert first["content"] == "R. o{x} {choose} 'go to shelf 1', 'inventory', 'look'"
    [later] = protocol.window(TASK, History(HISTORY, taken=9), "c", ["look"])
    assert later["content"] == (
        "put a mug in shelf|2/9|8:It's dark.->look;9:b->inventory;|10|<c>\nYour admissible actions: ['look']. " + protocol.TAGS
    )
    assert protocol.answer("now", []) == f"<now> {protocol.TAGS}"  # no list of nothing

    compact = CompactProtocol(prompt="{history}{observation} ({admissible})", exchange="{action}:{observation}\n")
    [message] = compact.window(TASK, HISTORY, "c", COMMANDS)
    assert message["content"] == "look:It's dark.\ninventory:b\nc ('go to shelf 1', 'inventory', 'look')"


def test_a_template_that_nothing_could_fill_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"protocol.later has a slot \{observatoin\}: .*Did you mean 'observation'\?"):
        ThinkActProtocol(later="{observatoin}")
    with pytest.raises(ConfigError, match=r"protocol.prompt is no template .*write \{\{ and \}\} for the signs"):
        CompactProtocol(prompt="{")
    with pytest.raises(ConfigError, match=r"slot \{task.id\}: nothing fills it"):
        ThinkActProtocol(first="{task.id}")
    with pytest.raises(ConfigError, match=r"slot \{\}: nothing fills it"):
        ThinkActProtocol(first="{}")


@pytest.mark.parametrize("text", ["<think>a</think></action><action>look", "</action> <think>a</think> <action>look</action>"])
def test_an_action_that_is_closed_before_it_is_opened_is_empty_and_valid(text: str) -> None:
    """As verl-agent's projection has it: it cuts between the first tag of each kind."""
    for protocol in (ThinkActProtocol(), WebShopProtocol()):
        assert protocol.parse(text, []) == ("", True)
        assert "action" not in [tag for tag, *_ in protocol.spans(text)]


def test_a_household_told_in_few_words_names_all_that_a_command_needs():
    env, protocol = HouseholdEnv(receptacles="full"), BriefProtocol()
    saved = []
    for task in map(env.task, env.task_ids("train", 6, 0)):
        observation = env.reset(task)
        (message,) = protocol.opening(task, observation, env.admissible())
        opening = message["content"]
        assert opening.count(task.instruction) == 1
        spans = [(kind, int(a), int(b or a)) for kind, a, b in re.findall(r"(\w+) (\d+)(?:-(\d+))?[,.]", opening)]
        told = [f"{kind} {n}" for kind, a, b in spans for n in range(a, b + 1)]
        assert sorted(told) == sorted(re.findall(r"\w+ \d+", observation))
        saved.append(len(opening) / len(observation))
        for command in env.demonstration(task):
            told = env.step(command).observation
            said = protocol.answer(told, env.admissible())
            assert set(re.findall(r"\w+ \d+", told)) == set(re.findall(r"\w+ \d+", said)) and len(said) <= len(told)
            saved.append(len(said) / len(told))
    assert sum(saved) / len(saved) < 0.75


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("You arrive at desk 1. On the desk 1, you see a book 2, and a pen 1.", "desk 1: book 2, pen 1."),
        ("On the shelf 2, you see nothing.", "shelf 2: nothing."),
        ("You arrive at drawer 3. The drawer 3 is closed.", "drawer 3: closed."),
        ("You open the drawer 3. The drawer 3 is open. In it, you see a pen 1.", "drawer 3: pen 1."),
        ("You pick up the pen 1 from the drawer 3.", "You pick up the pen 1 from the drawer 3."),
        ("Nothing happens.", "Nothing happens."),
        ("You are in the middle of a room. Looking quickly around you, you see a bed 3, and a bed 1.", "Room: bed 1, bed 3."),
    ],
)  # fmt: skip
def test_sentences_of_a_household_in_few_words(told, said):
    assert BriefProtocol().answer(told, ()) == said
    history = BriefProtocol().window(Task("t", "f", "x"), [(told, "look")], told, ())[0]["content"]
    assert history.count(said) == 2
