"""Behaviour cloning of an expert: how a small policy starts at the interesting part.

    informed demonstrations (informed_share): prompt and expert are told the world's facts, so that the model learns to *read* them
    astray demonstrations (astray_share): at each turn, with probability astray_chance, somebody else acts, which is not imitated
    lost demonstrations (lost_share): of the informed ones, those whose first turns an expert plays who is told nothing, not imitated either
    slips (slip_share): of these actions, those that name a number which is not there, so that the world refuses them
    L = mean over the expert's tokens of -student_logp

Where somebody else acted the expert takes over, remembering what those actions showed. Without such demonstrations a skill-reading
teacher is useless on its student's path, and where the student searches for long it goes on as the student does. Where the goal
cannot be reached any more (a thing fits nowhere else), the demonstration is dropped, like an episode whose world failed.
"""

import random
import re

from jsonargparse import lazy_instance

from sdar.data import TaskBatch
from sdar.errors import ConfigError, PolicyError, check_share
from sdar.imitation import Imitation
from sdar.parts import PrivilegedView, Retriever
from sdar.registry import register
from sdar.rollout import Request
from sdar.rollout.border import admissible_of, observation_of, result_of
from sdar.scoring import Scorer
from sdar.teachers import SkillView
from sdar.types import Episode, Status


@register("bc")
class BehaviorCloning(Imitation):
    """Cross-entropy on an expert's actions.

    Value and gradient: of the mean negative log-likelihood of the expert's tokens, in nats, at temperature 1 whatever the sampler's
    is, over all tokens of the vocabulary but those that the sampler forbids.

    Args:
        retriever: What the informed half of the demonstrations is told.
        view: Where it stands in the prompt.
        informed_share: Share of demonstrations whose prompt and expert know the facts.
        astray_share: Share of demonstrations that go off course.
        astray_chance: Probability, at each turn of such a demonstration, that somebody else acts.
        lost_share: Share of the informed demonstrations that begin as a student's episode does: an expert that is told nothing plays the
            first turns, at most half of the horizon; the informed one takes over.
        slip_share: Share of these actions in which a number is too high ("go to drawer 5" of four), as a learner's may be: without any no
            demonstration says how to go on where the world refuses.
    """

    plays_attempts = False

    def __init__(
        self,
        retriever: Retriever,
        view: PrivilegedView = lazy_instance(SkillView),
        informed_share: float = 0.5,
        astray_share: float = 0.5,
        astray_chance: float = 0.3,
        slip_share: float = 0.0,
        lost_share: float = 0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        shares = {
            "informed_share": informed_share,
            "astray_share": astray_share,
            "slip_share": slip_share,
            "lost_share": lost_share,
        }
        check_share("model", **shares, astray_chance=astray_chance)
        self.retriever, self.view = retriever, view
        self.informed_share, self.astray_share, self.astray_chance = informed_share, astray_share, astray_chance
        self.slip_share, self.lost_share = slip_share, lost_share

    def collect(self, task_batch: TaskBatch) -> list[Episode]:
        requests = self.requests(task_batch, privileged=False)
        return self.ranks.map_over_ranks(lambda mine: [self.demonstrate(r) for r in mine], requests, "demonstrations")

    def demonstrate(self, request: Request) -> Episode:
        """One episode of the expert; every random choice derives from (seed, task, attempt)."""
        rng = random.Random(f"{self.seed}/demonstration/{request.task.id}/{request.attempt}")
        informed = rng.random() < self.informed_share
        astray_chance = self.astray_chance if rng.random() < self.astray_share else 0.0
        episode = request.begin()
        episode.privileged = informed
        episode.privileged_text = self.view.text(episode, (), 0, self.env_of(request.task)) if informed else ""
        lost = informed and self.lost_share and rng.random() < self.lost_share
        lost_turns = rng.randint(1, max(1, self.env_of(request.task).horizon // 2)) if lost else 0
        try:
            self.play_out(episode, rng, astray_chance, lost_turns)
        except (ConfigError, PolicyError):
            raise
        except Exception as error:  # the world is other people's code, and a game may be lost by an action off the course
            episode.status, episode.error = Status.ENV_ERROR, f"{type(error).__name__}: {error}"
        return episode

    def play_out(self, episode: Episode, rng: random.Random, astray_chance: float, lost_turns: int) -> None:
        """Play an episode until it is over, does not fit the context, or cannot be gone on with."""
        rollout, env = self.rollout.of(episode.task), self.env_of(episode.task)
        observation = observation_of(env, env.reset(episode.task))
        expert = env.expert(episode.task.facts if episode.privileged else {}, rng)
        searcher = env.expert({}, rng) if lost_turns else expert
        context: list[int] = []  # [tokens] that the model would have been told and said so far
        for turns in range(env.horizon):
            admissible = admissible_of(env, env.admissible())
            astray, lost = rng.random() < astray_chance, turns < lost_turns
            if lost:
                action = self.perhaps_slipped(searcher.act(), admissible, rng)
            else:
                action = self.perturbed_action(admissible, rng) if astray else expert.act()
            prompt, said = rollout.prompt(episode, context, observation, admissible), rollout.replayed(action)
            if len(prompt) + len(said.ids) > self.context:
                rollout.end_for_context(episode, prompt)
                break
            turn = rollout.turn(context, prompt, said, rollout.protocol.write(action), observation, action)
            turn.trainable = not astray and not lost
            context = prompt + said.ids
            result = result_of(env, env.step(action))
            expert.watch(action)
            if searcher is not expert:
                searcher.watch(action)
            observation, turn.reward, turn.valid = result.observation, result.reward, result.valid
            episode.turns.append(turn)
            episode.reward, episode.success = episode.reward + result.reward, result.success
            episode.status = Status.DONE if result.success else Status.HORIZON
            if result.done:
                break
        episode.final_observation = observation

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.scorer = Scorer(1.0, self.sampler.forbidden_ids, self.scorer.vocab_size)

    def perturbed_action(self, admissible: list[str], rng: random.Random) -> str:
        """What somebody else does: a random verb, then a random command with it."""
        commands = [a for a in admissible if " " in a] or admissible
        if not commands:
            raise ConfigError(
                f"model.astray_share is {self.astray_share}: demonstrations should go off course by other admissible commands, but "
                "this world lists none. Set it to 0."
            )
        verb = rng.choice(sorted({c.split()[0] for c in commands}))
        command = rng.choice([c for c in commands if c.split()[0] == verb])
        return self.perhaps_slipped(command, commands, rng)

    def perhaps_slipped(self, command: str, commands: list[str], rng: random.Random) -> str:
        return slipped(command, commands, rng) if self.slip_share and rng.random() < self.slip_share else command


def slipped(command: str, commands: list[str], rng: random.Random) -> str:
    """A command with its first number beyond those that commands with the same words before it have; without a number, as it is."""
    found = re.match(r"\D*(\d+)", command)
    if found is None:
        return command
    words, rest = command[: found.start(1)], command[found.end() :]
    highest = max(int(of[1]) for c in commands if (of := re.match(re.escape(words) + r"(\d+)", c)))
    return f"{words}{highest + rng.randint(1, 2)}{rest}"
