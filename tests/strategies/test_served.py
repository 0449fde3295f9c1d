"""Methods whose teacher lives behind servers: the same losses as with the teacher in the process, or a refusal at the start."""

import pytest
import torch
from policy_servers import policy_servers, sharp_policy

from sdar.divergences import JensenShannon
from sdar.envs import HouseholdEnv
from sdar.errors import ConfigError, NoProgressError
from sdar.plan import Launch
from sdar.plan.dry_run import rehearse
from sdar.plan.settings import describe
from sdar.policies import FreshPolicy, PretrainedPolicy
from sdar.strategies import HDPO, OPSD, SOD, TOPD, TopKOPD
from sdar.teachers import ExternalTeacher, LiveTeacher, PlainView, RoutedTeacher, ServedTeacher

NOWHERE = ["http://127.0.0.1:9"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A teacher of twice the student's width that reads its tokens."""
    plain, sharp = (tmp_path_factory.mktemp(name) for name in ("plain", "sharp"))
    policy = FreshPolicy(HouseholdEnv(), hidden_size=32, layers=2, heads=2, key_value_heads=2, context=512)
    policy.load_model().save_pretrained(plain)
    policy.load_tokenizer().save_pretrained(plain)
    return sharp_policy(plain, sharp, 3)


@pytest.fixture(scope="module")
def servers(folder):
    with policy_servers(folder, 2) as servers:
        yield servers


def in_process(folder):
    return ExternalTeacher(PretrainedPolicy(str(folder), dtype="float32"))


def watched(cls):
    """The method, keeping what each optimizer step minimised and what was logged."""

    class Watched(cls):
        losses, logged = (), ()

        def loss(self, part, tokens):
            loss = super().loss(part, tokens)
            self.losses = (*self.losses, float(loss.detach()))
            return loss

        def log_dict(self, metrics, **kwargs):
            self.logged = (*self.logged, dict(metrics))
            super().log_dict(metrics, **kwargs)

    Watched.__name__ = cls.__name__
    return Watched


@pytest.mark.parametrize("method", [SOD, TopKOPD])
def test_a_served_teacher_trains_as_one_in_the_process(small, servers, folder, method):
    """Two iterations: losses within 1e-5, weights within 1e-5; nothing of the teacher is in this process."""
    teachers = {"here": in_process(folder), "there": ServedTeacher([s.url for s in servers], request_tokens=300)}
    done = {}
    for name, teacher in teachers.items():
        torch.manual_seed(0)
        strategy = small.strategy(watched(method), teacher=teacher, optimizer=lambda p: torch.optim.SGD(p, lr=0.3))
        small.fit(strategy, 2)
        done[name] = strategy
    here, there = done["here"], done["there"]
    assert len(here.losses) == len(there.losses) >= 2 and here.losses[0] != here.losses[-1]
    assert there.losses == pytest.approx(here.losses, abs=1e-5)
    for name, weights in here.model.state_dict().items():
        torch.testing.assert_close(there.model.state_dict()[name], weights, rtol=0, atol=1e-5)
    assert not there.teacher_networks and not there.unsaved()
    [logged, _] = [metrics for metrics in there.logged if "teacher/retries" in metrics]
    assert logged["teacher/retries"] == logged["teacher/replica_failures"] == 0.0
    assert not any("teacher/retries" in metrics for metrics in here.logged)


def test_validation_says_that_the_teacher_does_not_act(small, servers, capsys):
    strategy = small.strategy(SOD, teacher=ServedTeacher([servers[0].url]))
    told = small.fit(strategy, 1, limit_val_batches=1, val_check_interval=1).callback_metrics
    assert "success/unseen" in told and not any(name.startswith("teacher/success") or "lift" in name for name in told)
    assert "The teacher is in other processes and does not act" in capsys.readouterr().out


def wants_everything():
    return OPSD, {"teacher": ServedTeacher(NOWHERE), "divergence": JensenShannon(), "view": PlainView()}


def wants_everything_of_one_family():
    teacher = RoutedTeacher({"heat": ServedTeacher(NOWHERE)}, LiveTeacher())
    return OPSD, {"teacher": teacher, "divergence": JensenShannon(), "view": PlainView()}


def wants_a_player():
    return HDPO, {"teacher": ServedTeacher(NOWHERE)}


def wants_continuations():
    return TOPD, {"teacher": ServedTeacher(NOWHERE)}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (
            wants_everything,
            "OPSD needs the teacher's whole distribution, and model.teacher is asked in other processes: a hidden",
        ),
        (wants_everything_of_one_family, "OPSD needs the teacher's whole distribution, and model.teacher is asked in other"),
        (
            wants_a_player,
            "HDPO has its teacher act in training, and model.teacher is asked in other processes, where it only scores",
        ),
        (wants_continuations, "TOPD has its teacher act in training, and model.teacher is asked"),
    ],
)
def test_what_a_served_teacher_cannot_tell_is_refused_before_anything_is_loaded(small, wrong, words):
    """Nobody is at the address: it is not even asked. The rehearsal of `sdar plan` ends with the same."""
    method, settings = wrong()
    strategy = small.strategy(method, **settings)
    strategy.policy.load_model = lambda: pytest.fail("the model was loaded")
    with pytest.raises(ConfigError, match=words):
        small.fit(strategy, 1)
    with pytest.raises(ConfigError, match=words):
        rehearse(small.strategy(method, **wrong()[1]), small.data())


class Short(LiveTeacher):
    def __init__(self, tokens):
        self.tokens = tokens

    def context(self, task):
        return self.tokens


def test_a_teacher_without_room_for_a_response_is_refused_at_the_start(small):
    with pytest.raises(
        ConfigError, match=r"the teacher's context is 6 tokens and sampler.max_new_tokens is 6: a response alone"
    ):
        small.fit(small.strategy(SOD, teacher=Short(6)), 1)
    with (
        pytest.warns(UserWarning, match=r"the teacher's view of task .*, but the teacher's context is 7"),
        pytest.raises(
            NoProgressError, match=r"2 iterations in a row, up to iteration 2, .*no row of its episodes had a response"
        ),
    ):
        small.fit(small.strategy(SOD, teacher=Short(7), max_empty_iterations=2), 1)


def test_a_plan_asks_no_server_and_counts_no_memory_for_it(small, folder):
    def planned(teacher):
        module, data = small.strategy(SOD, teacher=teacher), small.data()
        seen, cut = rehearse(module, data)
        assert module.teacher is teacher
        return describe(module, data, Launch(), seen), cut

    there, cut = planned(RoutedTeacher({"heat": LiveTeacher()}, ServedTeacher(NOWHERE)))
    assert "model.teacher: the policy's own weights stand for those of the servers, which are not asked" in cut
    assert there.others == () and "teacher" not in there.work.passes and there.work.passes == {"policy": 1.0}
    assert any("its servers hold and run the teacher; neither" in note for note in there.notes)
    here, cut = planned(in_process(folder))
    assert [n.role for n in here.others] == [f"teacher {folder}"] and here.work.passes == {"policy": 1.0, "teacher": 1.0}
    assert not any("model.teacher" in line for line in cut)
