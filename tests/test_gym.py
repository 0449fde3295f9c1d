"""The worlds under Gymnasium's interface, and Gymnasium's environments as worlds."""

import gymnasium
import pytest
from gymnasium.utils.env_checker import check_env
from worlds import OURS

from sdar.envs import GymnasiumEnv, HouseholdEnv
from sdar.errors import ConfigError, EnvironmentFault, PanelError
from sdar.gym import AnyText, TextEnv

SMALL = {"receptacles": 8, "horizon": 10, "world": 5}


class Countdown(gymnasium.Env):
    """Texts, rewards and infos of an environment that nobody here wrote: say the number that is one less, down to zero."""

    observation_space = AnyText()
    action_space = AnyText()

    def __init__(self, told: bool = True, mute: bool = False):
        self.told, self.mute = told, mute

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(2, 5))
        return f"It is {self.left}.", {"admissible_commands": [str(self.left - 1)]}

    def step(self, action):
        right = action == str(self.left - 1)
        self.left -= right
        over = self.left == 0
        told = {"won": over, "admissible_commands": [str(self.left - 1)], "valid": action.isdigit()} if self.told else {}
        return 7 if self.mute else f"It is {self.left}.", 1.0 * over, over, False, told


gymnasium.register("tests/Countdown-v0", entry_point=Countdown)


def test_every_world_is_registered() -> None:
    for cls in OURS:
        if cls is not GymnasiumEnv:
            assert f"sdar/{cls.__name__.removesuffix('Env')}-v0" in gymnasium.registry


def test_the_household_passes_the_checker_of_gymnasium() -> None:
    env = gymnasium.make("sdar.gym:sdar/Household-v0", split="unseen", tasks=16, **SMALL).unwrapped
    assert isinstance(env, TextEnv)
    check_env(env, skip_render_check=True)


def test_an_episode_under_gymnasium_is_the_episode_of_the_world() -> None:
    env = gymnasium.make("sdar/Household-v0", split="unseen", tasks=16, **SMALL)
    world = HouseholdEnv(**SMALL)
    observation, info = env.reset(seed=3)
    assert env.reset(seed=3)[1] == info  # the seed draws the task
    task = world.task(info["task_id"])
    assert (info["family"], info["instruction"]) == (task.family, task.instruction)
    assert observation == world.reset(task) and info["admissible"] == world.admissible()
    for action in world.demonstration(task):
        observation, reward, terminated, truncated, info = env.step(action)
        expected = world.step(action)
        assert (observation, reward, terminated, truncated) == (expected.observation, expected.reward, expected.done, False)
    assert terminated and info["success"] and info["admissible"] == []
    env.reset(options={"task_id": task.id})
    ends = [env.step("look")[2:4] for _ in range(world.horizon)]
    assert ends == [(False, False)] * (world.horizon - 1) + [(False, True)]  # out of time is no end of the world


def test_a_wrong_answer_on_the_last_step_ends_the_episode_and_is_not_out_of_time() -> None:
    env = gymnasium.make("sdar.gym:sdar/Search-v0", passages=60, horizon=2)
    env.reset(seed=0)
    assert env.step("search[x]")[2:4] == (False, False)
    assert env.step("answer[nobody knows]")[2:4] == (True, False)
    env.reset(seed=0)
    env.step("search[x]")
    assert env.step("search[x]")[2:4] == (False, True)


def test_a_world_has_as_many_tasks_as_there_are() -> None:
    for cls in OURS:
        settings = {"Household": SMALL, "Search": {"passages": 60}, "WebShop": {"num_products": 30}}
        name = cls.__name__.removesuffix("Env")
        if name not in ("Gymnasium", "ALFWorld", "WebShopHTTP"):
            for split in cls.splits:
                env = gymnasium.make(f"sdar/{name}-v0", split=split, **settings.get(name, {})).unwrapped
                there = env.world.size(split)
                assert len(env.task_ids) == (4096 if there is None else there) > 0
    with pytest.raises(ConfigError, match=r"tasks is 5000, but split 'seen' of SearchEnv has \d+: .* or leave `tasks` out"):
        gymnasium.make("sdar/Search-v0", split="seen", passages=60, tasks=5000)
    with pytest.raises(ConfigError, match=r"tasks is 0, but split 'train' of HouseholdEnv has any number"):
        gymnasium.make("sdar/Household-v0", tasks=0, **SMALL)


def test_an_environment_of_gymnasium_is_a_world() -> None:
    world = GymnasiumEnv("tests/Countdown-v0", instruction="Count down.", family="numbers", horizon=6)
    task = world.task(world.task_ids("unseen", 3, 0)[1])
    assert (task.family, task.instruction) == ("numbers", "Count down.")
    first = world.reset(task)
    assert world.reset(task) == first
    assert not world.step("blue").valid
    while True:
        result = world.step(world.admissible()[0])
        if result.done:
            break
    assert result.success and result.reward == 1.0 and result.observation == "It is 0."
    world.reset(task)
    late = [world.step("9") for _ in range(6)][-1]
    assert late.done and not late.success


def test_success_is_the_reward_where_nobody_says() -> None:
    for goal, expected in ((1.0, True), (2.0, False)):
        world = GymnasiumEnv("tests/Countdown-v0", options={"told": False}, success_reward=goal)
        start = world.reset(world.task(world.task_ids("train", 1, 0)[0]))
        for number in range(int(start.split()[-1].rstrip(".")) - 1, -1, -1):
            result = world.step(str(number))
        assert result.done and result.success is expected


def test_what_cannot_be_a_world_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"gymnasium.make\('NoSuch-v0'\) failed with NameNotFound"):
        GymnasiumEnv("NoSuch-v0")
    with pytest.raises(ConfigError, match=r"its observation_space is Box.*no Text: a policy reads and writes texts"):
        GymnasiumEnv("CartPole-v1")
    with pytest.raises(ConfigError, match=r"env.horizon is 0"):
        GymnasiumEnv("tests/Countdown-v0", horizon=0)
    world = GymnasiumEnv("tests/Countdown-v0")
    with pytest.raises(PanelError, match=r"task x does not belong to tests/Countdown-v0 with these settings"):
        world.task("x")
    with pytest.raises(ConfigError, match=r"was asked to act before `reset`"):
        world.step("1")
    mute = GymnasiumEnv("tests/Countdown-v0", options={"mute": True})
    mute.reset(mute.task(mute.task_ids("train", 1, 0)[0]))
    with pytest.raises(EnvironmentFault, match=r"answered with a int: its observations must be texts"):
        mute.step("1")
