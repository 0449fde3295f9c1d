"""Answering questions with a search engine: Search-R1's loop, on its data or on a generated encyclopedia."""

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

from sdar.envs.search_encyclopedia import GENERATOR, make_encyclopedia
from sdar.envs.search_protocol import read_action, write_action
from sdar.envs.search_questions import Question, Questions, choose, file_questions, found_by, generated_questions, told
from sdar.envs.search_scoring import exact_match, f1, format_reward, found_gold, substring_match
from sdar.errors import ConfigError, PanelError, check_least
from sdar.parts import Environment, Expert, StepResult
from sdar.paths import how_to_fetch, resolve
from sdar.registry import register
from sdar.search import Passage, SearchBackend
from sdar.search.bm25 import BM25Searcher, in_memory
from sdar.skills import SkillBank
from sdar.types import Task

IN_DOMAIN = ("nq", "hotpotqa")
"""What Search-R1 and verl-agent train on; measured beside it: triviaqa, popqa, 2wikimultihopqa, musique, bamboogle."""
LONGEST_QUERY = 2000
INVALID = (
    "My last action was not valid. To search, I put the query between <search> and </search>. To give the final answer, I put "
    "it between <answer> and </answer>. I try again."
)
PLAIN_INVALID = "That was neither a search nor an answer."
Telling = Literal["search_r1", "verl_agent", "plain"]
Reward = Literal["em", "f1", "em_format"]


@register("encyclopedia")
class EncyclopediaBackend(SearchBackend):
    """BM25 over the generated encyclopedia, in memory; what `SearchEnv` searches where no other backend is set.

    Args:
        world, passages, short: Those of the environment.
    """

    def __init__(self, world: int = 0, passages: int = 6000, short: bool = False):
        _check_passages("EncyclopediaBackend", passages)
        self.world, self.passages, self.short = world, passages, short

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        return _searcher(self.world, self.passages, self.short).search(queries, k)


@dataclass
class SearchEpisode:
    """What has happened since the question was asked."""

    question: Question
    turns: int = 0
    searches: int = 0
    asked: list[str] = field(default_factory=list)
    kept: bool = True
    """Every response so far kept the protocol's format."""
    found: bool = False
    """A gold answer stood in a passage."""


@register("search")
class SearchEnv(Environment):
    """Questions, a search engine, and an answer that is compared with the gold ones; success is an exact match.

    Actions are ``search[query]`` and ``answer[text]``; anything else costs a turn and is told so. The search of the last
    turn is not carried out: nobody would read its passages. Search-R1's n turns are ``horizon: n + 1``, verl-agent's are n.

    Generated questions have the splits ``train`` and ``seen`` (other questions of the same kinds: direct, attribute, bridge,
    comparison) and ``unseen`` (kinds of their own: chain, longer, same). Questions from files are ``train``, and of the test
    files ``seen`` for the datasets in `in_domain` and ``unseen`` for the others. A panel holds every kind or dataset equally
    often, while it lasts; the kind or dataset is the task's family.

    Args:
        backend: What is searched. None: BM25 over the generated encyclopedia, which needs no file.
        data: Files of questions (.parquet or .jsonl of Search-R1, verl-agent or FlashRAG) for ``train`` and ``test``. Columns:
            ``question``; ``golden_answers`` (a text or a list of them, each as good) or ``reward_model.ground_truth.target``;
            perhaps ``data_source``, the dataset (``questions`` where it is missing), and ``id``. A text counts once in a split, and
            not in training where it is a test question's. None: generated.
        in_domain: Datasets that are trained on; nq and hotpotqa by default.
        world: Seed of the generated encyclopedia.
        passages: About how many passages it has.
        short: One short sentence a passage.
        top_k: Passages for a query.
        max_searches: Most searches of an episode; None: as many as there are turns.
        max_chars: Longest text of all passages together; what is cut is said.
        telling: How passages are told: ``search_r1`` (``Doc 1(Title: "T") text`` in ``<information>`` tags), ``verl_agent``
            (JSON in such tags) or ``plain`` (title and text, no tags).
        reward: ``em``, ``f1``, or ``em_format`` (version 0.3 of Search-R1): exact match and format, as `format_reward` has it.
        retrieval_reward: With ``em_format``, what a found gold answer adds to a wrong one.
        success_reward: Factor of the reward.
        horizon: Most actions in an episode.
        split: Where training tasks come from.
    """

    protocol_name, action_form, world_kind = "search_window", "searches", "questions"

    running: SearchEpisode | None

    def __init__(
        self,
        backend: SearchBackend | None = None,
        data: dict[str, list[str]] | None = None,
        in_domain: list[str] | None = None,
        world: int = 0,
        passages: int = 6000,
        short: bool = False,
        top_k: int = 3,
        max_searches: int | None = None,
        max_chars: int = 4000,
        telling: Telling = "search_r1",
        reward: Reward = "em",
        retrieval_reward: float = 0.0,
        success_reward: float = 1.0,
        horizon: int = 4,
        split: Literal["train", "seen", "unseen"] = "train",
    ):
        check_least("env", 1, horizon=horizon, top_k=top_k)
        check_least("env", 20, max_chars=max_chars)
        if max_searches is not None and not 0 <= max_searches < horizon:
            raise ConfigError(
                f"env.max_searches is {max_searches} with env.horizon {horizon}: it is 0 to {horizon - 1}, for the last turn "
                "has no search. Leave it out for as many searches as there are turns."
            )
        for name, value, known in (("telling", telling, get_args(Telling)), ("reward", reward, get_args(Reward))):
            if value not in known:
                raise ConfigError(f"env.{name} is {value!r}: it is one of {', '.join(known)}.")
        if retrieval_reward and reward != "em_format":
            raise ConfigError(
                f"env.retrieval_reward is {retrieval_reward}, but env.reward is {reward}: it belongs to em_format. Remove it."
            )
        if data is None:
            _check_passages("env", passages)
            if in_domain is not None:
                raise ConfigError(
                    "env.in_domain is set, but env.data is not: generated questions have kinds of their own. Remove it."
                )
        else:
            _check_data(data, backend)
            if (world, passages, short) != (0, 6000, False):
                raise ConfigError(
                    "env.world, env.passages or env.short is set beside env.data: they belong to the generated encyclopedia, "
                    "which questions from files do not use. Remove them."
                )
        self.data, self.in_domain = data, tuple(in_domain or IN_DOMAIN)
        self.world, self.passages, self.short = world, passages, short
        self.backend = EncyclopediaBackend(world, passages, short) if backend is None else backend
        self.top_k, self.max_searches, self.max_chars = top_k, max_searches, max_chars
        self.telling, self.reward, self.retrieval_reward = telling, reward, retrieval_reward
        self.success_reward, self.horizon, self.split = success_reward, horizon, split
        settings = json.dumps([GENERATOR, world, passages, short])
        # a file's questions are named by their own content
        self.fingerprint = "data" if data else hashlib.sha256(settings.encode()).hexdigest()[:8]

    def check(self) -> None:
        """Whether the search answers."""
        self.backend.check()

    def questions(self) -> Questions:
        """Split -> questions, the same object for all copies in a process."""
        if self.data is None:
            return generated_questions(self.world, self.passages, self.short)
        return file_questions(_state(self.data.get("train", [])), _state(self.data.get("test", [])), self.in_domain)

    def task_ids(self, split: str, count: int, seed: int) -> list[str]:
        self.check_split(split)
        chosen = choose(self.questions()[split].values(), count, seed, f"split {split!r}")
        return [f"search-{self.fingerprint}-{split}-{name}" for name in chosen]

    def size(self, split: str) -> int:
        self.check_split(split)
        return len(self.questions()[split])

    def task(self, task_id: str) -> Task:
        question = self.question(task_id)
        return Task(id=task_id, family=question.family, instruction=question.text, facts=told(question))

    def question(self, task_id: str) -> Question:
        """The question of a task id.

        Raises:
            PanelError: it is none of this world.
        """
        name, fingerprint, split, *rest = [*task_id.split("-", 3), "", "", ""][:4]
        if name != "search" or split not in self.splits:
            raise PanelError(f"{task_id!r} is no search task: ids look like search-FINGERPRINT-SPLIT-QUESTION.")
        if fingerprint != self.fingerprint:
            raise PanelError(
                f"task {task_id} belongs to other questions (fingerprint {fingerprint}, this world has {self.fingerprint}): "
                "it would be another question under the same name. Use the settings that the panel was made with."
            )
        table = self.questions()[split]
        if rest[0] not in table:
            raise PanelError(
                f"task {task_id} is not among the {len(table)} questions of split {split!r}: the file that it comes from was "
                "changed, or is not the one of env.data. Use the files that the panel was made with."
            )
        return table[rest[0]]

    def reset(self, task: Task) -> str:
        self.running = SearchEpisode(self.question(task.id))
        return f"Question: {self.running.question.text}"

    def step(self, action: str) -> StepResult:
        episode: SearchEpisode = self.ongoing()
        episode.turns += 1
        read = read_action(action)
        episode.kept = episode.kept and read is not None and read[2]
        if read is not None and read[0] == "answer":
            return self._end(episode, read[1])
        last = episode.turns >= self.horizon
        refusal = self._refusal(episode, read[1] if read else "")
        if refusal:
            episode.kept = False
            return replace(self.unfinished(), valid=False) if last else StepResult(refusal, valid=False)
        if last:
            return self.unfinished()
        assert read is not None
        episode.searches += 1
        episode.asked.append(read[1])
        [passages] = self.backend.search([read[1]], self.top_k)
        text = listed(passages, self.telling, self.max_chars)
        episode.found = episode.found or (bool(passages) and found_gold(text, episode.question.answers))
        return StepResult(framed(text, self.telling))

    def unfinished(self) -> StepResult:
        """What no answer is worth."""
        return replace(self._end(self.ongoing(), None), truncated=True)

    def expert(self, facts: Mapping[str, str], rng: random.Random) -> "SearchExpert":
        episode: SearchEpisode = self.ongoing()
        return SearchExpert(episode, self.demonstration_of(episode.question), "answer" in facts)

    def demonstration(self, task: Task) -> list[str]:
        """Searches that find each thing in its turn, then the answer."""
        return self.demonstration_of(self.question(task.id))

    def demonstration_of(self, question: Question) -> list[str]:
        if not question.hops:
            raise ConfigError(
                "questions from files come without a way to their answers, so SearchEnv has no demonstrations or experts for "
                "them. Give demonstrations as a file, or use generated questions (no env.data)."
            )
        queries = dict.fromkeys(hop.query for hop in question.hops)
        return [*(write_action("search", query) for query in queries), write_action("answer", question.answers[0])]

    def solution(self, task: Task) -> str:
        """Each step, where they are known, and the gold answers."""
        return found_by(self.question(task.id))

    def hint(self, task: Task) -> str:
        """What to find out first; for questions from files, how many words the answer has."""
        question = self.question(task.id)
        if question.hops:
            return f"First find the {question.hops[0].thing}."
        return f"The answer has {len(question.answers[0].split())} words."

    def corpus(self, rng: random.Random) -> tuple[list[str], list[str]]:
        if self.data is not None:
            raise ConfigError(
                "SearchEnv has no corpus for env.data: a fresh policy needs generated questions. Remove env.data."
            )
        passages = make_encyclopedia(self.world, self.passages, self.short).passages
        told_passages = [tell([p], self.telling, self.max_chars) for p in rng.sample(passages, min(len(passages), 2000))]
        train = list(self.questions()["train"].values())
        questions = rng.sample(train, min(len(train), 2000))
        texts = [text for q in questions for text in (f"Question: {q.text}", *self.demonstration_of(q), *q.answers)]
        texts += [line for q in questions[:200] for line in (f"search: {q.hops[0].query}", f"answer: {q.answers[0]}")]
        texts += [found_by(q) for q in questions[:200]]
        texts += [skill.text for skill in SkillBank.load("conf/skills/search")] * 3  # read in words, not in bytes
        return [*told_passages, *texts, PLAIN_INVALID], list(PHRASES)

    def _refusal(self, episode: SearchEpisode, query: str) -> str:
        """Why a search is not carried out; empty: it is."""
        if not query:
            return PLAIN_INVALID if self.telling == "plain" else INVALID
        if len(query) > LONGEST_QUERY:
            return f"The query has {len(query)} characters; the search engine takes {LONGEST_QUERY}."
        if self.max_searches is not None and episode.searches >= self.max_searches:
            return f"All {self.max_searches} searches are used up: only an answer is left."
        return ""

    def _end(self, episode: SearchEpisode, answer: str | None) -> StepResult:
        golds = episode.question.answers
        correct, overlap = exact_match(answer, golds), f1(answer, golds)
        if self.reward == "em_format":
            kept = episode.kept and answer is not None
            worth = format_reward(correct, kept, answer is not None, episode.found, retrieval=self.retrieval_reward)
        else:
            worth = overlap if self.reward == "f1" else float(correct)
        scores = {"em": float(correct), "f1": overlap, "sub_em": float(substring_match(answer, golds))}
        return StepResult("", self.success_reward * worth, done=True, success=correct, scores=scores)


PHRASES = (
    "Question: ",
    "In which year was",
    "In which town was",
    "On which river does",
    "Who was born first,",
    "was founded in",
    "is a town in",
    ", on the River",
    ", known for",
    ", born in",
    ", taught by",
    "search:",
    "answer:",
    "No passage fits.",
)


class SearchExpert(Expert):
    """Looks up what the question needs, one thing after the other, and answers; at once if the answer was told."""

    def __init__(self, episode: SearchEpisode, way: list[str], knows: bool):
        self.episode, self.way, self.knows = episode, way, knows

    def act(self) -> str:
        if self.knows:
            return self.way[-1]
        left = (action for action in self.way[:-1] if (read_action(action) or ("", "", True))[1] not in self.episode.asked)
        return next(left, self.way[-1])

    def watch(self, action: str) -> None:
        """The episode itself remembers what was asked."""


def tell(passages: Sequence[Passage], telling: Telling, max_chars: int) -> str:
    """What the model is told of the passages that were found; `max_chars` counts their text without what stands around."""
    return framed(listed(passages, telling, max_chars), telling)


def listed(passages: Sequence[Passage], telling: Telling, max_chars: int) -> str:
    """The passages as one text."""
    if telling == "search_r1":
        text = "".join(f"Doc {n}(Title: {p.heading}) {p.text}\n" for n, p in enumerate(passages, 1))
    elif telling == "verl_agent":
        text = "".join(f"Doc {n}: {p.contents.strip()}\n" for n, p in enumerate(passages, 1))
    else:
        text = "\n".join(p.text if p.title in p.text else f"{p.title}: {p.text}" for p in passages)
    return cut(text, max_chars) or "No passage fits."


def framed(text: str, telling: Telling) -> str:
    """The text of passages with what stands around."""
    if telling == "plain":
        return text
    return f"<information>{json.dumps({'result': text}) if telling == 'verl_agent' else text.strip()}</information>"


def cut(text: str, length: int) -> str:
    """The first `length` characters, and how many were cut."""
    return text if len(text) <= length else f"{text[:length]} [... {len(text) - length} characters cut]"


def _check_passages(where: str, passages: int) -> None:
    if not 40 <= passages <= 10_000:
        raise ConfigError(f"{where}.passages is {passages}: the encyclopedia has names for 40 to 10000 passages.")


def _check_data(data: Mapping[str, Sequence[str]], backend: SearchBackend | None) -> None:
    if backend is None:
        raise ConfigError(
            "env.data names files of questions, but env.backend is not set: the generated encyclopedia knows nothing of them. "
            "Set a backend over their corpus, e.g. {class_path: HTTPBackend, init_args: {url: "
            "http://127.0.0.1:8000/retrieve}}."
        )
    if unknown := set(data) - {"train", "test"}:
        raise ConfigError(
            f"env.data has {', '.join(sorted(unknown))}: its keys are train and test, each with a list of files."
        )
    for key, files in data.items():
        if isinstance(files, str) or not files:
            raise ConfigError(f"env.data.{key} is {files!r}: it is a list of one file or more.")


def _state(files: Sequence[str]) -> tuple[tuple[str, int, int], ...]:
    """What files are now: one that was written anew is read anew."""
    paths = [resolve(file) for file in files]
    for path in paths:
        if not path.is_file():
            raise ConfigError(
                f"question file {path} does not exist: name a .parquet or .jsonl file in env.data.{how_to_fetch(path)}"
            )
    return tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in map(Path, paths))


@lru_cache(maxsize=4)
def _searcher(world: int, passages: int, short: bool) -> BM25Searcher:
    return in_memory(make_encyclopedia(world, passages, short).passages)
