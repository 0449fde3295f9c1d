"""The hidden facts of the world itself, told as sentences: privileged information without a skill bank.

A world records in ``task.facts`` where things are (thing -> place); the student has to search, the teacher is told.
"""

from string import Formatter

from sdar.errors import ConfigError
from sdar.parts import Environment, Retriever
from sdar.registry import did_you_mean, register
from sdar.skills import FACT_TEMPLATE, Skill, retrieval
from sdar.types import Retrieval, Task


@register("fact")
class FactRetriever(Retriever):
    """The hidden facts of the task, one sentence each, in the order of ``task.facts``; nothing if it has none.

    Args:
        template: A sentence with {thing} and {place}; null: the world's own, which is about places in a household only.
    """

    def __init__(self, template: str | None = None):
        self.given = template is not None
        self.template = FACT_TEMPLATE if template is None else template
        _check(self.template)

    def bind_env(self, env: Environment) -> None:
        if not self.given:
            self.template = env.fact_template

    def retrieve(self, task: Task, visit: int = 0) -> Retrieval:
        facts = task.facts.items()
        return retrieval(Skill(f"fact:{thing}", self.template.format(thing=thing, place=place)) for thing, place in facts)


def _check(template: str) -> None:
    try:
        fields = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
        if fields == {"thing", "place"}:
            template.format(thing="mug", place="fridge")
    except ValueError as error:
        raise ConfigError(
            f"FactRetriever.template {template!r} cannot be filled in: {error}. Write a literal brace as '{{{{' or '}}}}'."
        ) from error
    for name in sorted(fields - {"thing", "place"}):
        raise ConfigError(
            f"FactRetriever.template {template!r} has the field {{{name}}}, which a fact does not have."
            f"{did_you_mean(name, ['thing', 'place'])} Use {{thing}} and {{place}}."
        )
    for name in sorted({"thing", "place"} - fields):
        raise ConfigError(
            f"FactRetriever.template {template!r} lacks {{{name}}}: the sentence would hide half of the fact. Add it."
        )
