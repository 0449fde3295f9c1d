"""No skills at all: the teacher sees what the student sees. The baseline of every claim about skills."""

from sdar.parts import Retriever
from sdar.registry import register
from sdar.types import Retrieval, Task


@register("no")
class NoRetriever(Retriever):
    """Nothing: teacher and student see the same prompt."""

    def retrieve(self, task: Task, visit: int = 0) -> Retrieval:
        return Retrieval()
