"""The interface of the original's ``WebAgentTextEnv``, so that agents written against it run unchanged on our engine."""

import random
import string
from collections.abc import Callable
from itertools import accumulate

from sdar.envs.webshop import WebShopEnv
from sdar.envs.webshop_data import Goal
from sdar.envs.webshop_engine import Visit
from sdar.envs.webshop_pages import MODES, SEPARATOR, Mode
from sdar.errors import ConfigError
from sdar.registry import did_you_mean


class WebShopTextEnv:
    """``reset(session)``, ``step(action)``, ``get_available_actions()`` and ``get_instruction_text()`` of the original.

    The reward is the score. `step` after a purchase goes on in the same session, as in the original. Observation modes
    ``html`` and ``url`` are refused: there is no HTML here.

    Args:
        observation_mode: ``text`` or ``text_rich``.
        env: Whose products and goals it has; by default the generated catalogue's.
        filter_goals: Keep the goals for which ``filter_goals(position, goal)`` is true.
        limit_goals: Keep that many goals, drawn by weight; -1 keeps all.
        show_attrs: Item pages have an Attributes button.
        session_prefix: Put before session names.
        num_prev_obs: How many earlier observations stand before the current one.
        num_prev_actions: How many earlier actions stand before the current observation.
        seed: Of goals that are drawn.
    """

    def __init__(
        self,
        observation_mode: Mode = "text",
        env: WebShopEnv | None = None,
        filter_goals: Callable[[int, Goal], bool] | None = None,
        limit_goals: int = -1,
        show_attrs: bool = False,
        session_prefix: str = "",
        num_prev_obs: int = 0,
        num_prev_actions: int = 0,
        seed: int = 0,
    ):
        if observation_mode not in MODES:
            raise ConfigError(
                f"observation_mode is {observation_mode!r}: this engine writes text, not HTML."
                f"{did_you_mean(observation_mode, MODES)} Modes: {', '.join(MODES)}."
            )
        self.observation_mode: Mode = observation_mode
        self.shop = (env or WebShopEnv()).shop
        self.show_attrs = show_attrs
        self.session_prefix = session_prefix
        self.num_prev_obs, self.num_prev_actions = num_prev_obs, num_prev_actions
        self.rng = random.Random(f"webshop/sessions/{seed}")
        self.positions = [i for i, goal in enumerate(self.shop.goals) if filter_goals is None or filter_goals(i, goal)]
        if 0 <= limit_goals < len(self.positions):
            kept: list[int] = []
            while len(kept) < limit_goals:
                kept += [i for i in [self._drawn()] if i not in kept]
            self.positions = kept
        if not self.positions:
            raise ConfigError("filter_goals and limit_goals leave no goal: there is nothing to do. Keep at least 1.")
        self._sessions: dict[str, int] = {}
        self.reset()

    @property
    def goals(self) -> list[Goal]:
        """The goals by number, as an integer session means them."""
        return [self.shop.goals[i] for i in self.positions]

    def reset(self, session: int | str | None = None, instruction_text: str | None = None) -> tuple[str, None]:
        """Begin a session: an integer is the number of a goal, a name keeps the goal that it was given first."""
        drawn = "".join(self.rng.choices(string.ascii_lowercase, k=10))
        self.session = self.session_prefix + (drawn if session is None else str(session))
        if self.session not in self._sessions:
            self._sessions[self.session] = self.positions[session] if isinstance(session, int) else self._drawn()
        self.visit = Visit(self._sessions[self.session], attributes=self.show_attrs)
        self.instruction_text = self.get_instruction_text() if instruction_text is None else instruction_text
        self.prev_obs: list[str] = [self.observation]
        self.prev_actions: list[str] = []
        return self.observation, None

    def step(self, action: str) -> tuple[str, float, bool, None]:
        """Observation (with what came before it, where asked for), reward, whether something was bought, and None."""
        accepted = self.shop.act(self.visit, action)
        bought = accepted and self.visit.at == "done"
        self.prev_actions.append(action)
        told = [self.observation]
        for i in range(1, 1 + max(self.num_prev_obs, self.num_prev_actions)):
            if i <= min(self.num_prev_actions, len(self.prev_actions)):
                told.append(self.prev_actions[-i])
            if i <= min(self.num_prev_obs, len(self.prev_obs)):
                told.append(self.prev_obs[-i])
        self.prev_obs.append(self.observation)
        return SEPARATOR.join(reversed(told)), self.visit.score if bought else 0.0, bought, None

    def get_available_actions(self) -> dict[str, bool | list[str]]:
        """``{"has_search_bar": ..., "clickables": [...]}`` of the current page."""
        page = self.shop.page(self.visit)
        return {"has_search_bar": page.search_bar, "clickables": list(page.clickables())}

    def get_instruction_text(self) -> str:
        """The instruction as the page's heading has it, with ``Instruction:`` before it."""
        heading = "Instruction: " if self.visit.at == "search" else "Instruction:"
        return heading + self.shop.goals[self.visit.goal].instruction

    @property
    def observation(self) -> str:
        """The current page."""
        return self.shop.observe(self.visit, self.observation_mode)

    def close(self) -> None:
        """Nothing to let go of."""

    def _drawn(self) -> int:
        weights = accumulate(self.shop.goals[i].weight for i in self.positions)
        return self.rng.choices(self.positions, cum_weights=list(weights))[0]
