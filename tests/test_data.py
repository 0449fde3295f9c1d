"""TaskModule: which tasks an iteration gets, on every machine and after every resumption."""

import json
import random
from collections import Counter
from itertools import islice
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import Parrot, ScriptedSampler, random_ids, word_chat

from sdar.curricula import BackToFront, FrontToBack
from sdar.data import TaskBatch, TaskModule, protocol_of
from sdar.data.panels import Panel
from sdar.envs import CompactProtocol, HouseholdEnv, SearchEnv, SearchR1Protocol, ThinkActProtocol, WebShopProtocol
from sdar.envs.search import EncyclopediaBackend
from sdar.errors import ConfigError, PanelError
from sdar.module import AgentModule
from sdar.registry import load_parts, parts
from sdar.retrievers import FactRetriever
from sdar.rollout import Request
from sdar.teachers import HindsightView, SiblingView, SkillView, SolutionView
from sdar.types import Episode, Retrieval, Task, Turn


def module(env: HouseholdEnv | None = None, **kwargs) -> TaskModule:
    settings_ = {"tasks_per_step": 3, "group_size": 2, "train_tasks": 10, "val_tasks": 5, "protocol": CompactProtocol()}
    return TaskModule(env or HouseholdEnv(receptacles=6, horizon=4), **settings_ | kwargs)


def ids(task_batch: TaskBatch) -> list[str]:
    return [task.id for task in task_batch.tasks]


def test_the_tasks_of_an_iteration_follow_from_seed_and_iteration_alone() -> None:
    data = module()
    steps = [data.step(5, i) for i in range(12)]
    random.seed(99)
    other = module(HouseholdEnv(receptacles=6, horizon=9), group_size=2, workers=2)
    assert [other.step(5, i) for i in reversed(range(12))] == steps[::-1]
    assert [ids(data.step(6, i)) for i in range(12)] != [ids(s) for s in steps]


def test_the_order_of_training_tasks_never_changes() -> None:
    """Frozen: a resumed run must go on with the same tasks in every version."""
    numbers = [[int(t[-6:]) for t in ids(module().step(5, i))] for i in range(4)]
    assert numbers == [[6, 7, 0], [4, 5, 3], [9, 1, 8], [2, 4, 0]]


@given(tasks=st.integers(1, 12), per_step=st.integers(1, 7), seed=st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_a_pass_visits_every_task_once(tasks: int, per_step: int, seed: int) -> None:
    data = module(train_tasks=tasks, tasks_per_step=per_step, val_tasks=1)
    steps = [data.step(seed, i) for i in range(-(-3 * tasks // per_step))]
    visited = [pair for s in steps for pair in zip(ids(s), s.visits, strict=True)][: 3 * tasks]
    for pass_ in range(3):
        part = visited[pass_ * tasks : (pass_ + 1) * tasks]
        assert {visit for _, visit in part} == {pass_}
        assert sorted(task for task, _ in part) == sorted(data.train_panel.task_ids)


def test_games_that_training_and_a_panel_share_are_counted_before_training(recwarn) -> None:
    world = {"receptacles": 6, "rooms": 1, "distractors": 0, "instances": 1, "usual_share": 1.0, "world": 0, "horizon": 4}
    env = HouseholdEnv(families=["pick_and_place_simple"], **world)
    data = module(env, train_tasks=512, val_tasks=64)
    games = {split: [env.game(i).hash() for i in env.task_ids(split, 512, 0)] for split in env.splits}
    shared = len([g for g in games["seen"][:64] if g in games["train"]])
    assert shared > 10 and not set(games["unseen"][:64]) & set(games["train"])
    data.setup("test")
    assert not recwarn.list  # what is measured without training is as it is
    data.setup("fit")
    told = [str(w.message) for w in recwarn.list]
    assert len(told) == 1 and told[0].startswith(
        f"{shared} of the 64 tasks of panel 'seen' are, but for their ids, tasks of training"
    )
    module().setup("fit")
    assert len(recwarn.list) == 1


def test_no_attempt_is_numbered_twice_in_a_run() -> None:
    """Task and attempt name every random number, so two attempts with one number would be one attempt twice."""
    data = module(tasks_per_step=4, group_size=3)
    strategy = SimpleNamespace(retriever=None, controller=None, iteration=0)
    requests = [r for i in range(10) for r in AgentModule.requests(strategy, data.step(0, i), privileged=False)]
    assert len(requests) == 10 * 4 * 3
    assert max(Counter((r.task.id, r.attempt) for r in requests).values()) == 1
    assert {r.attempt for r in requests} == set(range(12))
    assert not any(r.privileged or r.privileged_text or r.replay or r.max_turns or r.extra for r in requests)


class Notes:
    """A retriever that says which visit it was asked in."""

    def retrieve(self, task, visit: int = 0) -> Retrieval:
        return Retrieval(("note",), f"{task.id}, visit {visit}")


def test_privileged_requests_are_told_what_the_view_tells_before_an_episode() -> None:
    data = module()
    step = data.step(0, 3)  # the second visit of a task is among them
    strategy = SimpleNamespace(retriever=Notes(), controller=None, iteration=0, view=SkillView(), env_of=lambda task: data.env)
    for privileged in (True, False):
        requests = AgentModule.requests(strategy, step, privileged)
        notes = [f"{t.id}, visit {v}" for t, v in zip(step.tasks, step.visits, strict=True) for _ in range(2)]
        assert [r.retrieval.text for r in requests] == notes and len(set(step.visits)) == 2
        assert [r.privileged_text for r in requests] == (notes if privileged else [""] * 6)
        assert all(r.privileged == privileged for r in requests)
    strategy.view = SolutionView()
    assert [r.privileged_text for r in AgentModule.requests(strategy, step, True)][::2] == [
        data.env.solution(t) for t in step.tasks
    ]
    strategy.view = HindsightView()
    assert {r.privileged_text for r in AgentModule.requests(strategy, step, True)} == {""}  # there is nothing to look back at


def test_a_curriculum_changes_the_attempts_of_training_alone() -> None:
    data = module()
    step = data.step(0, 0)
    strategy = SimpleNamespace(retriever=None, controller=FrontToBack(every=2), iteration=5, env_of=lambda task: data.env)
    assert {r.max_turns for r in AgentModule.requests(strategy, step, False)} == {3}
    assert {r.max_turns for r in AgentModule.requests(strategy, step, False, training=False)} == {None}
    strategy.controller = BackToFront(every=5, start=2)
    shown = [data.env.demonstration(t) for t in step.tasks]
    assert [r.replay for r in AgentModule.requests(strategy, step, False)][::2] == [tuple(s[:-3]) for s in shown]
    assert {r.replay for r in AgentModule.requests(strategy, step, False, training=False)} == {()}


def test_informed_requests_repeat_the_attempts_with_what_the_view_tells_of_each() -> None:
    data = module()
    played = []
    for task in data.step(0, 0).tasks[:2]:
        for g in range(2):
            turn = Turn([1], [2], [0.0], [0.0], action=f"{task.id} {g}")
            played.append(Episode(task, g, [turn], success=g == 1, retrieval=Retrieval(("s",), "skill")))
    strategy = SimpleNamespace(view=SiblingView(), env_of=lambda task: data.env)
    requests = AgentModule.privileged_requests(strategy, [played[:2], played[2:]], extra=True)
    a, b = (e.task.id for e in played[::2])
    assert [r.privileged_text for r in requests] == [f"{a} 1", "", f"{b} 1", ""]
    assert [(r.task, r.attempt, r.retrieval) for r in requests] == [(e.task, e.attempt, e.retrieval) for e in played]
    assert all(r.privileged and r.extra and not r.replay and r.max_turns is None for r in requests)
    assert not any(r.extra for r in AgentModule.privileged_requests(strategy, [played[:2], played[2:]]))
    one_each = AgentModule.privileged_requests(strategy, [played[:2], played[2:]], most=1)
    assert [r.privileged_text for r in one_each] == [f"{a} 1", f"{b} 1"]  # the whole group is seen


def test_a_loader_goes_on_from_the_iteration_of_the_strategy() -> None:
    data = module()
    for start in (0, 7):
        data.trainer = SimpleNamespace(lightning_module=SimpleNamespace(seed=4, iteration=start))
        steps = list(islice(iter(data.train_dataloader()), 3))
        assert steps == [data.step(4, start + i) for i in range(3)]


def test_validation_plays_the_whole_panel_in_pieces_and_in_order() -> None:
    data = module(val_batch=2, val_attempts=3, val_splits=["unseen", "seen", "unseen"], test_splits=["seen"])
    assert [p.name for p in data.val_panels] == ["unseen", "seen"]
    for panel, loader in zip(data.val_panels, data.val_dataloader(), strict=True):
        steps = list(loader)
        assert [len(s.tasks) for s in steps] == [2, 2, 1]
        assert [t for s in steps for t in ids(s)] == list(panel.task_ids)
        assert all(s.panel == panel and s.attempts == 3 and set(s.visits) == {0} for s in steps)
    for loader in (data.test_dataloader(), data.predict_dataloader()):
        assert [t for s in loader[0] for t in ids(s)] == list(data.val_panels[1].task_ids)
        assert len(loader) == 1
    assert [p.name for p in data.panels()] == ["train", "unseen", "seen"]


def test_test_panels_that_are_not_validated_on_are_made_too() -> None:
    data = module(val_splits=["seen"], test_splits=["unseen"])
    assert [p.name for p in data.test_panels] == ["unseen"] and len(data.test_panels[0]) == 5


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tasks_per_step": 0}, r"data.tasks_per_step is 0: it must be at least 1"),
        ({"group_size": 0}, r"data.group_size is 0: it must be at least 1"),
        ({"history": -1}, r"data.history is -1: it must be at least 0"),
        ({"val_attempts": 0}, r"data.val_attempts is 0"),
        ({"val_batch": 0}, r"data.val_batch is 0"),
        ({"workers": -1}, r"data.workers is -1: it must be at least 0"),
        ({"deadline": 60.0}, r"data.deadline is 60.0 seconds, but the world runs in this process"),
        ({"panel_files": {"sene": "x.json"}}, r"data.panel_files names \['sene'\], which no panel of this run uses"),
        (
            {"env": HouseholdEnv(split="seen"), "val_splits": ["train", "unseen"]},
            r"'train' is measured while training plays 'seen': both would be logged as success/train\. Play 'train'",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        module(**wrong)


def test_panels_that_cannot_be_are_refused() -> None:
    with pytest.raises(PanelError, match=r"panel 'train' is empty"):
        module(train_tasks=0)
    with pytest.raises(PanelError, match=r"HouseholdEnv has no split 'unsen'. Did you mean 'unseen'\?"):
        module(val_splits=["unsen"])
    with pytest.raises(PanelError, match=r"data.test_splits names 'unsen', with data.val_tasks 5: .* has no split 'unsen'"):
        module(test_splits=["unsen"])
    for splits in ({"val_splits": ["train"]}, {"test_splits": ["train"]}):
        with pytest.raises(PanelError, match=r"panels 'train' and 'train' share 5 tasks"):
            module(**splits)


def test_data_of_one_dataset_are_trained_and_validated_on(tmp_path) -> None:
    """No test row is of another dataset: there is no ``unseen``, and nobody asked for it before the test."""
    rows = [{"question": f"who is number {i}?", "golden_answers": [str(i)], "data_source": "mine"} for i in range(12)]
    for name, part in (("train", rows[:8]), ("test", rows[8:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    files = {name: [str(tmp_path / f"{name}.jsonl")] for name in ("train", "test")}
    env = SearchEnv(data=files, in_domain=["mine"], backend=EncyclopediaBackend(passages=200))
    own = {"protocol": None, "train_tasks": 8, "val_tasks": 4, "val_splits": ["seen"]}
    data = module(env, **own)
    data.setup("fit")
    assert [p.name for p in data.measured] == ["seen"]
    words = r"data.test_splits names 'unseen', with data.val_tasks 4: split 'unseen' has 0 questions"
    for stage in ("test", "predict"):
        with pytest.raises(PanelError, match=words):
            data.setup(stage)
    with pytest.raises(PanelError, match=words):
        module(env, **own, test_splits=["unseen"])
    module(env, **own, test_splits=["seen"]).setup("test")
    with pytest.raises(
        PanelError, match=r"data.val_splits names 'unseen', with data.val_tasks 4: split 'unseen' has 0 questions"
    ):
        module(env, **own | {"val_splits": ["seen", "unseen"]})
    with pytest.raises(PanelError, match=r"data.train_tasks is 9: split 'train' has 8 questions, 9 were asked for"):
        module(env, **own | {"train_tasks": 9})


def test_a_panel_file_replaces_a_panel(tmp_path) -> None:
    env = HouseholdEnv(receptacles=6, horizon=4)
    mine = Panel("mine", tuple(env.task_ids("unseen", 9, 77)[::3]))
    train = Panel.generate(env, "train", 4, 5)
    mine.save(tmp_path / "mine.json")
    train.save(tmp_path / "train.json")
    data = module(env, panel_files={"unseen": str(tmp_path / "mine.json"), "train": str(tmp_path / "train.json")})
    assert data.train_panel == train
    assert data.val_panels == [Panel.generate(env, "seen", 5, 0), mine] and data.test_panels == [mine]
    assert set(ids(data.step(0, 0))) <= set(train.task_ids)
    train.save(tmp_path / "leak.json")
    with pytest.raises(PanelError, match=r"share 4 tasks"):
        module(env, panel_files={"seen": str(tmp_path / "leak.json"), "train": str(tmp_path / "train.json")})


def test_a_panel_file_of_another_world_is_refused_at_once(tmp_path) -> None:
    Panel.generate(HouseholdEnv(receptacles=9), "seen", 3, 0).save(tmp_path / "seen.json")
    with pytest.raises(PanelError, match=r"belongs to a household with other settings"):
        module(panel_files={"seen": str(tmp_path / "seen.json")})


def test_a_world_without_a_split_of_its_own_trains_on_train() -> None:
    """A user's environment needs no `split` setting; its task ids only have to differ between the panels."""

    class Numbers(Parrot):
        def task_ids(self, split: str, count: int, seed: int) -> list[str]:
            return [f"{split}-{i}" for i in range(count)]

    data = TaskModule(Numbers(["x"]), train_tasks=3, val_tasks=2)
    assert data.train_panel.task_ids == ("train-0", "train-1", "train-2")


def test_episodes_do_not_depend_on_the_number_of_workers() -> None:
    chat = word_chat()
    played = []
    for workers in (0, 1, 3):
        data = module(layout="trajectory", workers=workers)
        try:
            rollout = data.rollout(chat, ScriptedSampler(lambda draw: random_ids(chat, draw), chat), SkillView(), seed=2)
            played.append(rollout(None, [Request(task, g) for task in data.step(2, 1).tasks for g in range(2)]))
        finally:
            data.teardown("fit")
    assert played[0] == played[1] == played[2]
    assert len(played[0]) == 6


def test_rollouts_share_one_pool_until_teardown() -> None:
    data = module()
    chat = word_chat()
    sampler = ScriptedSampler(lambda draw: "look", chat)
    first, second = (data.rollout(chat, sampler, SkillView(), seed=0) for _ in range(2))
    assert first.pool is second.pool
    data.teardown("fit")
    data.teardown("fit")
    assert data.rollout(chat, sampler, SkillView(), seed=0).pool is not first.pool


# ------------------------------------------------------------------ the protocol fits the world

load_parts()
OWN_WORLDS = {name: cls for name, cls in parts("environments").items() if cls.__module__.startswith("sdar.")}
OWN_PROTOCOLS = {name: cls for name, cls in parts("protocols").items() if cls.__module__.startswith("sdar.")}


@pytest.mark.parametrize("world", OWN_WORLDS)
@pytest.mark.parametrize("name", [None, *OWN_PROTOCOLS])
def test_a_world_is_told_as_itself_or_not_at_all(world: str, name: str | None) -> None:
    env = object.__new__(OWN_WORLDS[world])
    protocol = None if name is None else OWN_PROTOCOLS[name]()
    wanted = {"household": "household", "alfworld": "household", "webshop": "shop", "webshop_http": "shop"}.get(world)
    try:
        chosen = protocol_of(env, protocol)
    except ConfigError as error:
        assert name is not None and "data.protocol is" in str(error)
        assert (env.action_form not in (None, protocol.action_form)) or protocol.world_kind != env.world_kind
        return
    content = chosen.window(Task("t", "f", "do it"), (), "You see it.", ["look"])[-1]["content"].lower()
    assert "household" not in content or wanted == "household"
    assert "webshop" not in content or wanted == "shop"


def test_a_world_of_a_user_is_told_in_neutral_words() -> None:
    [message] = protocol_of(Parrot(["x"]), None).opening(Task("t", "f", "guess it"), "Guess a number.", [])
    assert message["content"].startswith(
        "You are an expert agent acting in a world that answers in text. Your task is to: guess it"
    )
    assert "admissible" not in message["content"] and "<action>" in message["content"]


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        (
            ThinkActProtocol,
            r"is ThinkActProtocol, which tells the model that it acts in a household, and .* is none: set the",
        ),
        (WebShopProtocol, r"tells the model that it acts in a shop"),
    ],
)
def test_a_world_that_is_told_as_another_one_is_refused_unless_its_role_is_given(protocol, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        protocol_of(Parrot(["x"]), protocol())
    assert protocol_of(Parrot(["x"]), protocol(role="You guess numbers.")).role == "You guess numbers."


def test_actions_that_a_world_cannot_read_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"whose actions are searches, and .* takes commands: no response would do anything. Use"
    ):
        module(protocol=SearchR1Protocol())


def test_facts_are_told_in_the_words_of_their_world() -> None:
    task = Task("t", "f", "guess it", facts={"number": "3"})
    retriever, own = FactRetriever(), FactRetriever("{thing} = {place}")
    for each in (retriever, own):
        each.bind_env(Parrot(["x"]))
    assert [each.retrieve(task).text for each in (retriever, own)] == ["number: 3", "number = 3"]
    retriever.bind_env(object.__new__(HouseholdEnv))
    assert retriever.retrieve(task).text == "The number is usually in the 3."
