"""WebShop over HTTP: a client of an original server (the public code's Flask application).

Pages are read as the original's text mode reads them, so observations and actions are those of the engine. The client
follows the addresses that the pages hold: forms of buttons, links of products, addresses of options. The server keeps nothing
of an episode but its goal; a session named ``fixed_..._N`` gets the goal of number N.
"""

import hashlib
import json
import random
import re
import time
import uuid
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal
from urllib.parse import urlencode, urljoin

from sdar import http_client
from sdar.envs.webshop import SEARCH_ACTION
from sdar.envs.webshop_data import split_ranges
from sdar.envs.webshop_engine import parse_action
from sdar.envs.webshop_pages import BACK, BUY, MODES, SUB_PAGES, Mode, Node, Page
from sdar.errors import ConfigError, EnvironmentFault, PanelError, check_least
from sdar.http_client import check_url, same_origin, shown
from sdar.parts import Environment, StepResult
from sdar.registry import did_you_mean, register
from sdar.types import Task
from sdar.versions import install

_instructions: dict[tuple[str, int], str] = {}
"""By address and goal. A server that is started anew with other goals needs another process here, too."""
LARGEST_PAGE = 8 * 2**20
"""Bytes; a page of results has some 20,000."""
REDIRECTS = 5
_HIDDEN = {"style", "script", "head", "title", "meta", "[document]"}


@dataclass(frozen=True)
class Target:
    """Where a click leads."""

    method: str
    """Of the HTTP request."""
    url: str


@dataclass(frozen=True)
class Fetched:
    """A page of the server."""

    page: Page
    targets: dict[str, Target]
    """By the text that ``click[...]`` names."""
    instruction: str
    score: float | None
    """Of the purchase, on the last page."""


@dataclass
class RemoteVisit:
    """One episode at a server."""

    session: str
    shown: Fetched
    options: dict[str, str] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    actions: int = 0


@register("webshop_http")
class WebShopHTTPEnv(Environment):
    """WebShop at a server of the original: its products, its search, its reward.

    Families are not told by a server: every task is of the family ``webshop``. Nor are instructions, before a goal is visited: goals of
    different splits have different numbers, but a few share an instruction (`WebShopEnv` leaves such goals out).

    Args:
        url: Address of the server.
        goals: How many goals it has; its start says so (12,087 with the full data).
        split: Where training tasks come from.
        mode: ``text`` or ``text_rich``.
        horizon: Most actions in an episode.
        success_reward: Reward of a purchase that scores 1.
        dense_reward: Pay the score itself.
        timeout: Seconds that a request may take, to the last byte.
        retries: How often a failed request is tried again.
        pause: Seconds before the first new try; doubles each time.
    """

    protocol_name, action_form, world_kind = "webshop_think_act", "commands", "shop"

    running: RemoteVisit | None

    def __init__(
        self,
        url: str = "http://127.0.0.1:3000",
        goals: int = 12_087,
        split: Literal["train", "seen", "unseen"] = "train",
        mode: Mode = "text",
        horizon: int = 15,
        success_reward: float = 10.0,
        dense_reward: bool = False,
        timeout: float = 20.0,
        retries: int = 4,
        pause: float = 0.5,
    ):
        check_url(url, "env.url", "http://127.0.0.1:3000")
        check_least("env", 6, goals=goals)
        check_least("env", 1, horizon=horizon)
        check_least("env", 0, retries=retries, pause=pause)
        if not timeout > 0:
            raise ConfigError(f"env.timeout is {timeout} seconds: every request would be late. Give a positive number.")
        if mode not in MODES:
            raise ConfigError(f"env.mode is {mode!r}.{did_you_mean(mode, MODES)} Modes: {', '.join(MODES)}.")
        self.url = url.rstrip("/")
        self.goals = goals
        self.split = split
        self.mode = mode
        self.horizon = horizon
        self.success_reward = success_reward
        self.dense_reward = dense_reward
        self.timeout, self.retries, self.pause = timeout, retries, pause
        self.fingerprint = hashlib.sha256(json.dumps([self.url, goals]).encode()).hexdigest()[:8]

    def check(self) -> None:
        """Whether the server answers, with a page of the original's."""
        try:
            self._open("fixed_0")
        except EnvironmentFault as error:
            raise ConfigError(f"env.url: {error}") from None

    def task_ids(self, split: str, count: int, seed: int) -> list[str]:
        self.check_split(split)
        goals = list(split_ranges(self.goals)[split])
        if count > len(goals):
            raise PanelError(
                f"split {split} of a server with {self.goals} goals has {len(goals)}, {count} were asked for: ask for fewer."
            )
        random.Random(f"webshop/panel/{split}/{seed}").shuffle(goals)
        return [f"webshop_http-{self.fingerprint}-{goal}" for goal in goals[:count]]

    def size(self, split: str) -> int:
        self.check_split(split)
        return len(split_ranges(self.goals)[split])

    def task(self, task_id: str) -> Task:
        """The task; its instruction is asked from the server, once in a process."""
        number = self._number(task_id)
        if (self.url, number) not in _instructions:
            _instructions[self.url, number] = self._open(f"fixed_{number}").instruction
        return Task(task_id, "webshop", _instructions[self.url, number], seed=number)

    def reset(self, task: Task) -> str:
        session = f"fixed_{uuid.uuid4().hex}_{self._number(task.id)}"
        self.running = RemoteVisit(session, self._open(session))
        return self._observe(self.running)

    def step(self, action: str) -> StepResult:
        visit: RemoteVisit = self.ongoing()
        valid = self._act(visit, action)
        visit.actions += 1
        score = visit.shown.score
        success = score == 1.0
        return StepResult(
            observation=self._observe(visit),
            reward=(score or 0.0) if self.dense_reward else self.success_reward * success,
            done=score is not None or visit.actions >= self.horizon,
            success=success,
            valid=valid,
            scores={"score": score or 0.0},
            truncated=score is None and visit.actions >= self.horizon,
        )

    def admissible(self) -> list[str]:
        page = self.ongoing().shown.page
        search = [SEARCH_ACTION] if page.search_bar else []
        return search + [f"click[{name}]" for name in page.clickables() if name != "search"]

    def _act(self, visit: RemoteVisit, action: str) -> bool:
        name, argument = parse_action(action)
        argument = argument and argument.lower()
        if name == "search" and argument:
            query = argument.replace("/", " ")  # the server puts the words into an address, where a slash would be a border
            visit.shown = self._fetch("POST", f"{self.url}/{visit.session}", {"search_query": query})
            visit.options = {}
            return True
        node = visit.shown.page.clickables().get(argument or "")
        if name != "click" or argument is None or argument == "search" or node is None:
            return False
        target = visit.shown.targets[argument]
        visit.shown = self._fetch(target.method, target.url)
        controls = {text.lower() for text in (BACK, BUY, *SUB_PAGES)}
        if argument == BACK.lower():
            visit.options, visit.seen = {}, set()
        elif node.kind == "product":
            visit.options, visit.seen = {}, visit.seen | {node.text}
        elif node.kind == "option" and argument not in controls:
            visit.options[node.option] = argument
        return True

    def _observe(self, visit: RemoteVisit) -> str:
        page = visit.shown.page
        return page.text() if self.mode == "text" else page.text_rich(json.dumps(visit.options), visit.seen)

    def _open(self, session: str) -> Fetched:
        return self._fetch("GET", f"{self.url}/{session}")

    def _fetch(self, method: str, url: str, form: dict[str, str] | None = None) -> Fetched:
        """A page, tried again while the server is down, late or in trouble.

        Raises:
            EnvironmentFault: no answer, or one that is no WebShop page.
        """
        body = None if form is None else urlencode(form, errors="replace").encode()
        trouble = ""
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(self.pause * 2 ** (attempt - 1))
            try:
                answer = http_client.request(
                    method,
                    same_origin(url, self.url),
                    body,
                    timeout=self.timeout,
                    content_type="application/x-www-form-urlencoded",
                    largest=LARGEST_PAGE,
                    redirects=REDIRECTS,
                )
                if answer.status == 200:
                    return read_page(answer.body, answer.url)
                trouble = f"status {answer.status}"
                if 300 <= answer.status < 500 and answer.status not in (408, 429):
                    break  # asking again would give the same
            except http_client.RequestFailed as error:
                trouble = str(error)
                if error.kind in ("elsewhere", "large"):
                    break
        raise EnvironmentFault(
            f"the WebShop server gave no page for {method} {shown(url)[:200]} in {attempt + 1} tries ({trouble[:300]}): the episode "
            "cannot go on. Check that the server runs at env.url and how many goals it has."
        )

    def _number(self, task_id: str) -> int:
        name, _, rest = task_id.partition("-")
        fingerprint, _, number = rest.partition("-")
        if name != "webshop_http" or not (number.isascii() and number.isdecimal() and len(number) < 10):
            raise PanelError(f"{task_id!r} is no task of a WebShop server: ids look like webshop_http-FINGERPRINT-NUMBER.")
        if fingerprint != self.fingerprint or int(number) >= self.goals:
            raise PanelError(
                f"task {task_id} belongs to another server (fingerprint {fingerprint}, this one is {self.fingerprint}). Use the "
                "url and number of goals that the panel was made with."
            )
        return int(number)


def read_page(html: bytes | str, url: str) -> Fetched:
    """What the original's text mode sees of a page, and where its clicks lead.

    Raises:
        EnvironmentFault: no WebShop page.
    """
    bs4 = _parser()
    soup = bs4.BeautifulSoup(html, "html.parser")
    nodes, targets = [], {}
    radios = {radio.get("id"): radio for radio in soup.select('input[type="radio"]')}
    for text in soup.find_all(string=True):
        tag = text.parent
        if tag.name in _HIDDEN or isinstance(text, bs4.element.PreformattedString) or text == "\n":
            continue
        node = Node(str(text))
        if tag.name == "button" and "btn" in tag.get("class", ()):
            form = tag.find_parent("form")
            node = Node(str(text), "button")
            if form is not None:
                method = "POST" if (form.get("method") or "").lower() == "post" else "GET"
                targets[node.text.lower()] = Target(method, _joined(url, form.get("action")))
        elif "product-link" in tag.get("class", ()):
            node = Node(str(text), "product")
            targets[node.text.lower()] = Target("GET", _joined(url, tag.get("href")))
        elif tag.name == "label" and tag.get("for") in radios:
            radio = radios[tag["for"]]
            node = Node(radio.get("value") or str(text), "option", (radio.get("name") or "").lower())
            targets[node.text] = Target("GET", _joined(url, radio.get("data-url")))
        nodes.append(node)
    heading, reward = soup.find(id="instruction-text"), soup.find(id="reward")
    if heading is None and reward is None:
        raise EnvironmentFault(
            f"{shown(url)[:200]} answered with a page that is none of WebShop's (no instruction and no reward on it): "
            f"{soup.get_text()[:200]!r}. Check env.url."
        )
    instruction = heading.get_text().partition(":")[2].strip() if heading is not None else ""
    return Fetched(Page(tuple(nodes), soup.find(id="search_input") is not None), targets, instruction, _score(reward))


def _score(reward: Any) -> float | None:
    if reward is None:
        return None
    told = getattr(reward.find("pre"), "text", "").strip()
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?(e-?[0-9]+)?", told, re.ASCII) and float(told) <= 1:
        return float(told)
    raise EnvironmentFault(
        f"the WebShop server's last page tells no score in [0, 1] ({reward.get_text()[:100]!r}): the purchase cannot be judged."
    )


def _joined(page: str, address: str | None) -> str:
    """Where an address of a page leads; whether it may be followed is looked at when it is."""
    try:
        return urljoin(page, address or "")
    except ValueError:
        return address or ""


@lru_cache(maxsize=1)
def _parser() -> Any:
    try:
        import bs4
    except ImportError as error:
        raise ConfigError(
            f"A WebShop server's pages are read with beautifulsoup4 ({error}). Install it: {install('webshop')}."
        ) from None
    return bs4
