"""What a line of ``episodes/*.jsonl.gz`` holds; docs/episodes.md tells it to people, and a test compares the two.

A field that a method or a moment does not have is absent: there is no teacher's number without a teacher, and none of training in a
validation. Of absent ones an object has None. Per-token lists are as long as ``response_ids``; an entry is None where the number is not
known of that token (its loss was not computed, say). Lines without ``schema`` are of runs before there was a version.
"""

from typing import Any

import msgspec

VERSION = 2


class StoredTurn(msgspec.Struct, kw_only=True):
    """One exchange: what the model was given, what it said, what was thought of each of its tokens."""

    observation: str
    """What the world had said when this response was sampled."""
    response: str
    """What the model said, without the end-of-turn token."""
    action: str = ""
    """What the protocol found in it."""
    valid: bool = True
    """The response had the right form, and the world accepted the action."""
    well_formed: bool = True
    """The protocol found an action in the response."""
    tool_ok: bool | None = None
    """Whether the tool that the action called worked; null: it called none."""
    stopped: bool = True
    """The response ends with an end-of-turn token; false: it was cut."""
    trainable: bool = True
    """False: somebody else took this turn, and nothing is learned from it."""
    starts_row: bool | None = None
    """True where a training row begins: its prompt does not go on from the turn before."""
    reward: float = 0.0
    """Of this turn."""
    prompt: str | None = None
    """The text of `prompt_ids`, control tokens included."""
    prompt_ids: list[int] | None = None
    """What the model was told since the turn before; in the turn layout its whole prompt."""
    teacher_prompt: str | None = None
    """The text of `teacher_prompt_ids`."""
    teacher_prompt_ids: list[int] | None = None
    """All that the teacher had read before the first token of this response, where it read something else than the student and a row
    begins here. In the teacher's own tokens."""
    response_ids: list[int] = []
    """The sampled tokens, the end-of-turn token included."""
    pieces: list[str] | None = None
    """The text of each sampled token; joined they are the response with its control tokens. A character that several tokens spell
    stands at the last of them."""
    spans: list[int] | None = None
    """Per token 0, or 1 + the place in `tags` of the tag that it stands in; where the method asked for tags."""
    behaviour_logp: list[float] | None = None
    """Log-probability under the density that was sampled from, by the sampler."""
    kept_logmass: list[float] | None = None
    """Log of the mass that top-k, top-p and masks kept of it; absent: all was kept."""
    student_logp: list[float | None] | None = None
    """The policy's log-probability in the optimizer step that learned from the token; without a step as `old_logp`."""
    old_logp: list[float | None] | None = None
    """The policy's with the weights before the iteration's first step."""
    ref_logp: list[float | None] | None = None
    """The initial policy's."""
    teacher_logp: list[float | None] | None = None
    """The teacher's, of the same token behind its own prompt."""
    entropy: list[float | None] | None = None
    """Of the policy's next-token distribution, as `student_logp`; before the first step where there was no step."""
    teacher_entropy: list[float | None] | None = None
    """Of the teacher's."""
    gap: list[float | None] | None = None
    """teacher_logp - old_logp, 0 where the method takes a token out of the comparison."""
    gate: list[float | None] | None = None
    """How much the token trusts the teacher, in the step that learned from it."""
    turn_weight: float | None = None
    """How much the turn counts in the distillation."""
    divergence: list[float | None] | None = None
    """Between policy and teacher, in that step, as the distillation term has it."""
    weight: list[float | None] | None = None
    """What `divergence` is multiplied by in the loss: coefficient, choice of tokens and what makes its mean one over them, turn weight,
    gate, ratio, importance."""
    advantage: list[float | None] | None = None
    """Credit from rewards, and what a teacher made of it."""
    importance: list[float | None] | None = None
    """What the token's loss is multiplied by for the sampler's other density; absent: 1."""
    loss: list[float | None] | None = None
    """The token's loss, before the mean; null: it has none."""
    update: int | None = None
    """Number of the optimizer step in the iteration that learned from the turn, from 0."""
    normalizer: float | None = None
    """What the sum of the losses of that step is divided by (tokens)."""


class StoredEpisode(msgspec.Struct, kw_only=True):
    """One attempt at one task. Log-probabilities, entropies and gaps are in nats."""

    schema: int = 1
    """Version of this description."""
    run: str | None = None
    """Folder of the run, its name alone."""
    command: str | None = None
    """fit, validate, test, predict or score."""
    kind: str | None = None
    """train, validation or predict."""
    method: str | None = None
    """Class of the method."""
    seed: int | None = None
    """Of the run."""
    iteration: int | None = None
    """Number of the training iteration, from 1; of a measurement: how many iterations were over."""
    panel: str | None = None
    """Name of the panel that the task is from."""
    panel_hash: str | None = None
    """Of the panel."""
    actor: str | None = None
    """policy, or privileged: the teacher played, with what it may see."""
    task: str
    """Id of the task."""
    world: str = ""
    """Name of its world in a run that has several."""
    family: str
    """Kind of the task."""
    instruction: str
    """What is asked for."""
    attempt: int = 0
    """Number of the attempt at the task in the run."""
    extra: bool = False
    """It was played after its group had been seen, and is no attempt."""
    privileged: bool = False
    """The acting model was told what a teacher may know."""
    privileged_text: str | None = None
    """What it was told then."""
    skills: list[str] = []
    """Ids of the retrieved skills."""
    skill_text: str | None = None
    """Their text, as retrieved."""
    status: str = "done"
    """Why it ended: done, horizon, context, token_limit, timeout, env_error, env_died."""
    error: str = ""
    """What the world's fault said."""
    success: bool
    """It reached its goal."""
    reward: float = 0.0
    """Sum of its turns' rewards."""
    scores: dict[str, float] = {}
    """What the world measured beside success."""
    tags: list[str] | None = None
    """Names of the spans of responses, for `spans`."""
    objective: dict[str, Any] | None = None
    """What the loss of the iteration is made with: coefficients and parts, with their values in this iteration."""
    turns: list[StoredTurn]
    """In the order of time."""
    final_observation: str = ""
    """What the world said last."""

    @property
    def lost(self) -> bool:
        """The world failed: neither a success nor a failure."""
        return self.status in LOST

    @property
    def response_tokens(self) -> int:
        return sum(len(turn.response_ids) for turn in self.turns)


LOST = ("timeout", "env_error", "env_died")
PER_TOKEN = tuple(
    name
    for name, kind in StoredTurn.__annotations__.items()
    if name not in ("prompt_ids", "teacher_prompt_ids") and "list[" in str(kind)
)
"""Fields of a turn that have a value for each token of the response."""
NUMBERS = tuple(name for name in PER_TOKEN if name not in ("response_ids", "pieces", "spans"))
"""Those that are numbers of the model, the teacher or the method."""
