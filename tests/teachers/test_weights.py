"""Whose weights teach: frozen, following at their own pace, about the same tokens, and the same after a resumption."""

import copy
from collections.abc import Sequence

import pytest
import torch
from scripted import byte_chat, word_chat
from tokenizers import Tokenizer, models
from torch import nn
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from sdar.errors import ConfigError, PolicyError
from sdar.parts import Policy, Teacher
from sdar.policies import world_tokenizer
from sdar.registry import load_parts, parts
from sdar.teachers import EMATeacher, ExternalTeacher, InitialTeacher, LiveTeacher, RoutedTeacher, StaleTeacher
from sdar.types import Task

load_parts()
TEACHERS = {name: cls for name, cls in parts("teachers").items() if cls.__module__.startswith("sdar.") and not cls.elsewhere}


def task(family: str = "heat") -> Task:
    return Task("task-1", family, "do it")


def letters(*words: str) -> PreTrainedTokenizerBase:
    """A vocabulary that is exactly these words, in this order."""
    vocabulary = {word: i for i, word in enumerate(words)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token=words[0])))


class Net(nn.Module):
    """Embedding, a normalisation with buffers, head."""

    def __init__(self, rows: int = 3):
        super().__init__()
        self.embedding = nn.Embedding(rows, 2)
        self.norm = nn.BatchNorm1d(2)
        self.head = nn.Linear(2, rows)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.embedding(ids)))

    def get_output_embeddings(self) -> nn.Module:
        return self.head


class Shelf(Policy):
    """A model and a tokenizer as they are given."""

    def __init__(self, words: Sequence[str] | PreTrainedTokenizerBase = "abc", rows: int = 3, name: str = "big brother"):
        self.tokenizer = words if isinstance(words, PreTrainedTokenizerBase) else letters(*words)
        self.rows, self.name = rows, name

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        return self.tokenizer

    def load_model(self) -> nn.Module:
        return Net(self.rows)

    def context(self) -> int:
        return 77


def kept(teacher: Teacher) -> nn.ModuleDict:
    """What a strategy keeps of a teacher."""
    return nn.ModuleDict(teacher.networks())


def filled(value: float) -> Net:
    return fill(Net(), value)


def fill(net: nn.Module, value: float) -> nn.Module:
    """A network whose every weight and buffer is one number."""
    with torch.no_grad():
        for tensor in [*net.parameters(), *net.buffers()]:
            tensor.fill_(value)
    return net


def numbers(net: nn.Module) -> set[float]:
    return {float(x) for tensor in net.parameters() for x in tensor.flatten()}


def prepared(teacher: Teacher, live: nn.Module, student: PreTrainedTokenizerBase | None = None) -> Teacher:
    teacher.prepare(live, student or letters(*"abc"), "the student")
    return teacher


# ------------------------------------------------------------------ every teacher that has its network here

ARGUMENTS = {
    "external": lambda: {"policy": Shelf()},
    "routed": lambda: {"routes": {"heat": EMATeacher(), "cool": ExternalTeacher(Shelf())}},
    "aligned": lambda: {"policy": Shelf(word_chat().tokenizer, rows=600)},
}


@pytest.mark.parametrize("name", TEACHERS)
def test_a_teacher_is_frozen_and_only_the_live_one_is_the_student(name: str) -> None:
    live = filled(1.0).train()
    initial = copy.deepcopy(live).requires_grad_(False).eval()
    teacher = prepared(TEACHERS[name](**ARGUMENTS.get(name, dict)()), live)
    for iteration in range(12):
        network = teacher.model(live, initial, task())
        assert (network is live) == (name == "live")
        if name != "live":
            assert not any(p.requires_grad for p in network.parameters()) and not network.training
            assert not {p.data_ptr() for p in network.parameters()} & {p.data_ptr() for p in live.parameters()}
            assert not network(torch.tensor([0, 1])).requires_grad
        teacher.after_step(live)
        teacher.after_iteration(live, iteration)
    assert live.training and all(p.requires_grad for p in live.parameters()) and numbers(live) == {1.0}  # left alone


@pytest.mark.parametrize("name", TEACHERS)
def test_the_networks_of_a_teacher_are_its_state(name: str, tmp_path) -> None:
    live = filled(1.0)
    initial = copy.deepcopy(live).requires_grad_(False)

    def new() -> Teacher:
        torch.manual_seed(3)  # the shelf holds the same model each time
        return prepared(TEACHERS[name](**ARGUMENTS.get(name, dict)()), filled(1.0))

    teacher = new()
    for iteration in range(10):
        fill(live, 2.0 + iteration)
        teacher.after_step(live)
        teacher.after_iteration(live, iteration)
    torch.save(kept(teacher).state_dict(), tmp_path / "state")
    resumed = new()
    kept(resumed).load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    for step in range(2):  # as it was, and it goes on alike
        for family in ("heat", "cool"):
            ours, its = (t.model(live, initial, task(family)).state_dict() for t in (teacher, resumed))
            assert all(torch.equal(ours[key], its[key]) for key in ours), (step, family)
        for t in (teacher, resumed):
            t.after_step(live)


# ------------------------------------------------------------------ copies that follow


@pytest.mark.parametrize("teacher", [EMATeacher(), StaleTeacher()], ids=["ema", "stale"])
def test_a_copy_begins_as_the_student(teacher: Teacher) -> None:
    live = Net()
    its = prepared(teacher, live).model(live, None, task()).state_dict()
    assert all(torch.equal(its[key], value) for key, value in live.state_dict().items())


def test_an_average_follows_the_student_by_its_rate() -> None:
    """From 0, the student at 1, 2 and 4, rate 1/4: 0.25; 0.75 * 0.25 + 0.5; 0.75 * 0.6875 + 1."""
    live = filled(0.0)
    teacher = prepared(EMATeacher(rate=0.25), live)
    for step, (student, wanted) in enumerate([(1.0, 0.25), (2.0, 0.6875), (4.0, 1.515625)]):
        teacher.after_step(fill(live, student))
        teacher.after_iteration(live, step)  # nothing: it moves with the steps
        network = teacher.model(live, None, task())
        assert numbers(network) == {wanted}
        assert network.norm.running_mean.tolist() == [student] * 2  # buffers are no weights: as the student's
        assert int(network.norm.num_batches_tracked) == int(student)
    r = 0.25
    assert wanted == 1 * r * (1 - r) ** 2 + 2 * r * (1 - r) + 4 * r


def test_an_average_of_rate_one_is_the_student_but_not_the_same_weights() -> None:
    live = filled(0.0)
    teacher = prepared(EMATeacher(rate=1), live)
    teacher.after_step(fill(live, 3.0))
    fill(live, 5.0)
    assert numbers(teacher.model(live, None, task())) == {3.0}


def test_an_average_of_small_weights_is_taken_in_a_wider_type() -> None:
    live = filled(0.0).bfloat16()
    teacher = prepared(EMATeacher(rate=0.5), live)
    for _ in range(3):
        teacher.after_step(fill(live, 1.0))
    assert numbers(teacher.model(live, None, task())) == {0.875}
    assert {p.dtype for p in teacher.model(live, None, task()).parameters()} == {torch.bfloat16}


def test_moves_that_are_smaller_than_the_rounding_of_a_narrow_copy_add_up() -> None:
    live, wide = filled(1.0).bfloat16(), 1.0
    teacher = prepared(EMATeacher(rate=0.001), live)
    for _ in range(100):
        teacher.after_step(fill(live, 2.0))  # 0.001 is an eighth of the distance of numbers near 1
        wide += 0.001 * (2.0 - wide)
    assert numbers(teacher.model(live, None, task())) == {float(torch.tensor(wide).bfloat16())} != {1.0}


@pytest.mark.parametrize(("every", "known"), [(1, [0, 1, 2, 3, 4, 5]), (2, [-1, 1, 1, 3, 3, 5]), (3, [-1, -1, 2, 2, 2, 5])])
def test_a_stale_copy_is_made_every_few_iterations(every: int, known: list[int]) -> None:
    """`known`: after each iteration, the number of the iteration whose student the teacher is (-1: the first weights)."""
    live = filled(-1.0)
    teacher = prepared(StaleTeacher(every), live)
    seen = []
    for iteration in range(6):
        teacher.after_step(fill(live, float(iteration)))  # nothing: it moves with the iterations
        teacher.after_iteration(live, iteration)
        [value] = numbers(teacher.model(live, None, task()))
        seen.append(value)
    assert seen == known


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: EMATeacher(rate=0), r"teacher.rate is 0: the share of the student in each move lies in \(0, 1\]"),
        (lambda: EMATeacher(rate=1.5), r"teacher.rate is 1.5"),
        (lambda: StaleTeacher(every=0), r"teacher.every is 0: copies are made every 1 or more iterations"),
        (lambda: RoutedTeacher({}), r"teacher.routes is empty: name at least one task family"),
    ],
)
def test_settings_that_cannot_work_are_refused(wrong, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        wrong()


def test_the_initial_teacher_is_the_copy_that_was_kept() -> None:
    live, initial = Net(), Net()
    teacher = prepared(InitialTeacher(), live)
    assert teacher.needs_initial and teacher.model(live, initial, task()) is initial
    assert not LiveTeacher().needs_initial and not EMATeacher().needs_initial


# ------------------------------------------------------------------ another model


@pytest.mark.parametrize(
    ("its", "fact"),
    [
        ("acb", "2 of 3 tokens differ, the first is id 1, 'b' for the student and 'c' for the teacher"),
        ("ab", "1 of 3 tokens differ, the first is id 2, 'c' for the student and None for the teacher"),
        ("abxc", "1 of 3 tokens differ, the first is id 2, 'c' for the student and 'x' for the teacher"),
    ],
)
def test_a_teacher_of_other_tokens_is_refused(its: str, fact: str) -> None:
    message = f"the teacher big brother and the student the student have different tokenizers: {fact}.*student's family"
    with pytest.raises(PolicyError, match=message):
        prepared(ExternalTeacher(Shelf(its, rows=9)), Net())


def test_control_tokens_and_whole_tokenizers_are_compared() -> None:
    words, tools = word_chat().tokenizer, word_chat().tokenizer
    tools.add_special_tokens({"additional_special_tokens": ["<tool>"]})
    last = len(words)
    prepared(ExternalTeacher(Shelf(tools, rows=600)), Net(), words)  # it knows more: that is no harm
    lacking = prepared(ExternalTeacher(Shelf(words, rows=600)), Net(), tools)  # what it lacks no row may hold
    assert (
        lacking.lacks == {last: "<tool>"} and prepared(RoutedTeacher({"heat": lacking}), Net(), tools).lacks == lacking.lacks
    )
    for other in (byte_chat().tokenizer, world_tokenizer(["Other words make another tokenizer."], [], 300, 512)):
        with pytest.raises(PolicyError, match=r"have different tokenizers: \d+ of \d+ tokens differ"):
            prepared(ExternalTeacher(Shelf(other, rows=600)), Net(), words)


@pytest.mark.parametrize("rows", [3, 4, 64])
def test_a_padded_vocabulary_is_accepted(rows: int) -> None:
    teacher = prepared(ExternalTeacher(Shelf(rows=rows)), Net())
    assert teacher.model(Net(), None, task()).head.weight.shape[0] == rows
    assert teacher.context(task()) == 77


def test_a_head_that_lacks_tokens_is_refused() -> None:
    message = r"the teacher big brother has 2 output rows for the 3 tokens of the student: it cannot score the last ones"
    with pytest.raises(PolicyError, match=message):
        prepared(ExternalTeacher(Shelf(rows=2)), Net())


def test_another_model_does_not_move() -> None:
    live = filled(1.0)
    teacher = prepared(ExternalTeacher(Shelf()), live)
    before = copy.deepcopy(teacher.model(live, None, task()).state_dict())
    teacher.after_step(live)
    teacher.after_iteration(live, 0)
    assert all(torch.equal(before[k], v) for k, v in teacher.model(live, None, task()).state_dict().items())
    assert teacher.external() == set(teacher.networks())  # it is where it was: nothing of it goes into checkpoints


def test_a_teacher_tells_its_networks_and_which_come_from_elsewhere() -> None:
    live, external, average = Net(), ExternalTeacher(Shelf()), EMATeacher()
    assert external.networks() == {}
    routed = prepared(RoutedTeacher({"heat": average, "cool": external}, external), live)
    assert routed.networks() == {"heat/copy": average.copy, "cool/external": external.network, "/external": external.network}
    assert routed.external() == {"cool/external", "/external"} and external.external() == {"external"}
    assert all(t.networks() == {} and not t.external() for t in (LiveTeacher(), InitialTeacher()))
    stale = prepared(StaleTeacher(), live)
    assert stale.networks() == {"copy": stale.copy} and not stale.external()


# ------------------------------------------------------------------ one for each family


def test_each_family_has_its_teacher() -> None:
    live, initial = filled(1.0), filled(9.0)
    average, stale = EMATeacher(0.5), StaleTeacher(1)
    teacher = prepared(RoutedTeacher({"heat": average, "cool": stale, "clean": InitialTeacher()}, LiveTeacher()), live)
    assert teacher.needs_initial and not RoutedTeacher({"heat": average}).needs_initial
    fill(live, 3.0)
    teacher.after_step(live)
    teacher.after_iteration(live, 0)
    of = {f: teacher.model(live, initial, task(f)) for f in ("heat", "cool", "clean", "anything")}
    assert of["heat"] is average.copy and numbers(of["heat"]) == {2.0}
    assert of["cool"] is stale.copy and numbers(of["cool"]) == {3.0}
    assert of["clean"] is initial and of["anything"] is live


def test_a_family_without_a_teacher_is_an_error() -> None:
    teacher = prepared(RoutedTeacher({"heat": EMATeacher(), "cool": LiveTeacher()}), Net())
    message = r"task task-1 is of family 'heet', .*names no teacher. Did you mean 'heat'\? Routed families: heat, cool. Add it"
    with pytest.raises(ConfigError, match=message):
        teacher.model(Net(), None, task("heet"))
    with pytest.raises(ConfigError, match=r"family 'look_at', for which teacher.routes names no teacher. Routed families"):
        teacher.model(Net(), None, task("look_at"))


def test_a_teacher_of_two_families_moves_once() -> None:
    live = filled(0.0)
    shared = EMATeacher(0.5)
    teacher = prepared(RoutedTeacher({"heat": shared, "cool": shared}, shared), live)
    teacher.after_step(fill(live, 1.0))
    assert {x for f in ("heat", "cool", "else") for x in numbers(teacher.model(live, None, task(f)))} == {0.5}


def test_routed_weights_come_back_to_their_family() -> None:
    """Settings may name the families in another order, and leave one out."""
    live = filled(0.0)
    rates = {"heat": 0.5, "cool": 0.25, "clean": 1.0}
    saved = prepared(RoutedTeacher({f: EMATeacher(r) for f, r in rates.items()}, EMATeacher(0.125)), live)
    saved.after_step(fill(live, 1.0))
    resumed = prepared(RoutedTeacher({f: EMATeacher(rates[f]) for f in ("clean", "heat")}, EMATeacher(0.125)), live)
    kept(resumed).load_state_dict(kept(saved).state_dict(), strict=False)  # one family is left out
    of = {f: numbers(resumed.model(live, None, task(f))) for f in ("heat", "clean", "anything")}
    assert of == {"heat": {0.5}, "clean": {1.0}, "anything": {0.125}}


def test_every_routed_teacher_must_read_the_students_tokens() -> None:
    with pytest.raises(PolicyError, match="the teacher big brother and the student the student have different tokenizers"):
        prepared(RoutedTeacher({"heat": LiveTeacher(), "cool": ExternalTeacher(Shelf("cba"))}), Net())
    teacher = prepared(RoutedTeacher({"heat": EMATeacher(), "cool": ExternalTeacher(Shelf())}), Net())
    assert (teacher.context(task("cool")), teacher.context(task("heat"))) == (77, None)
