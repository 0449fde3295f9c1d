"""A teacher that lives elsewhere: policy servers score the rows, and no network of it is in the training process."""

from collections import Counter
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from sdar.distributed.communicator import Communicator, current_rank
from sdar.errors import ConfigError, PolicyError
from sdar.parts import RemoteModel, Teacher
from sdar.registry import register
from sdar.serving.fleet import Fleet, RetryPolicy
from sdar.serving.protocol import ScoreRequest, Scores, Scoring
from sdar.teachers.weights import check_same_vocabulary
from sdar.types import Density, Task, TeacherSignal

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SAME = 0.05
"""Nats that servers of one model may differ by on average: more than kernels and bfloat16 explain is another model."""


@register("served")
class ServedTeacher(Teacher):
    """Another model, frozen, behind servers (`sdar serve-policy`): with them, the training holds no weights of it.

    It is what ExternalTeacher is with the same model and dtype: the servers compute the density that is trained, with the run's own
    temperature, forbidden ids and vocabulary. It tells log-probabilities of the sampled and of the likeliest tokens; objectives over
    the whole vocabulary need a teacher in the process, and it does not act. Rows are spread over the ranks of the run, and those of a
    rank over the servers.

    Args:
        urls: The servers, all of one model, e.g. ``[http://127.0.0.1:8000]``.
        request_tokens: Most tokens (padding included) of rows that travel together: what a server that fails may cost.
        timeout: Seconds for one request, with those of other ranks before it.
        retries: Further attempts at a request that was answered wrongly or too late.
        outage: Seconds that the run waits while no server can be reached; also at the start.
        pause: Seconds that a server is left alone after it failed; doubled each time.
        token_env: Environment variable that holds the token which the servers want (`sdar serve-policy --token_env`).
    """

    is_remote = True

    def __init__(
        self,
        urls: list[str],
        request_tokens: int = 65536,
        timeout: float = 600.0,
        retries: int = 4,
        outage: float = 900.0,
        pause: float = 0.5,
        token_env: str | None = None,
    ):
        if request_tokens < 1:
            raise ConfigError(f"teacher.request_tokens is {request_tokens}: a request holds at least 1 token.")
        retry_policy = RetryPolicy(timeout=timeout, retries=retries, outage=outage, pause=pause)
        self.network = ServedNetwork(Fleet(urls, retry_policy, "teacher", token_env), request_tokens)
        self._context: int | None = None

    def prepare(self, live: "PreTrainedModel", tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        self.check_student(tokenizer, name)

    def check_student(self, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        fleet = self.network.fleet
        fleet.begin_at(current_rank())
        healths = fleet.health(fleet.retry_policy.outage)
        vocabulary = tokenizer.get_vocab()
        for replica, health in zip(fleet.replicas, healths, strict=True):
            if not health.get("scores"):
                raise ConfigError(
                    f"the policy server {replica.url} runs {health.get('engine')}, which samples and does not score: it is no teacher. "
                    "Start one with `sdar serve-policy --engine torch` or vllm."
                )
            if health.get("version") is not None:
                raise PolicyError(
                    f"the policy server {replica.url} has the weights {health['version']}, which somebody gave it, and not those that it "
                    "was started with: it would teach what another run has learnt. Start it again, and give samplers servers of their own."
                )
            added = tokenizer.added_tokens_decoder
            self.lacks = check_same_vocabulary(vocabulary, name, fleet.tokens(replica), replica.url, added)
            if health["vocab_size"] < len(tokenizer):
                raise PolicyError(
                    f"the teacher {replica.url} has {health['vocab_size']} output rows for the {len(tokenizer)} tokens of {name}: it "
                    "cannot score the last ones. Resize its embeddings, or use a teacher that knows every token."
                )
        self._context = min(health["context"] for health in healths)
        self._check_one_model(len(tokenizer), self._context)

    def _check_one_model(self, tokens: int, context: int) -> None:
        """Each server says what it thinks of the same few tokens."""
        fleet = self.network.fleet
        row = tuple(7 * i % tokens for i in range(min(64, context)))
        scoring = Scoring(1.0, (), tokens, 0)
        request = ScoreRequest(None, fleet.retry_policy.timeout, scoring, (row,), (((1, len(row)),),))
        urls = [replica.url for replica in fleet.replicas]
        said = [Fleet([url], fleet.retry_policy, fleet.part, fleet.token_env).score(request, len(row))[0].logp for url in urls]
        for url, logp in zip(urls, said, strict=True):
            if not (off := float((logp - said[0]).abs().mean())) <= SAME:
                raise PolicyError(
                    f"the policy servers {urls[0]} and {url} are not of one model: they differ by {off:.3g} nats on average about the "
                    f"same tokens (tolerance: {SAME:g}). A teacher is one model: start them with the same directory and dtype."
                )

    def context(self, task: Task) -> int | None:
        return self._context

    def model(self, live: "PreTrainedModel", initial: "PreTrainedModel | None", task: Task) -> "ServedNetwork":
        return self.network

    def metrics(self) -> dict[str, float]:
        return self.network.metrics()


class ServedNetwork(RemoteModel):
    """What `score_with_teachers` asks for log-probabilities in place of a network.

    Args:
        fleet: The servers.
        request_tokens: Most tokens (padding included) of one request.
    """

    def __init__(self, fleet: Fleet, request_tokens: int):
        self.fleet, self.request_tokens = fleet, request_tokens
        self._told: Counter[str] = Counter()

    def score(
        self,
        density: Density,
        ids: Tensor,
        attention_mask: Tensor,
        response_mask: Tensor,
        signal: TeacherSignal,
        k: int,
        ranks: Communicator,
    ) -> dict[str, Tensor]:
        lengths = attention_mask.sum(1).tolist()
        rows = [(row[:n].tolist(), spans_of(mask)) for row, mask, n in zip(ids, response_mask, lengths, strict=True)]
        k = k if signal == TeacherSignal.TOP_K else 0
        scoring = Scoring(density.temperature, density.forbidden_ids, density.vocab_size, k)

        def ask(mine: list[tuple[list[int], list[tuple[int, int]]]]) -> list[Scores]:
            texts = tuple(tuple(text) for text, _ in mine)
            spans = tuple(tuple(where) for _, where in mine)
            request = ScoreRequest(None, self.fleet.retry_policy.timeout, scoring, texts, spans)
            return self.fleet.score(request, self.request_tokens)

        scores = ranks.map_over_ranks(ask, rows, "the teacher's scores")
        names = ("logp", "top_ids", "top_logp") if k else ("logp",)
        return {name: torch.cat([getattr(s, name) for s in scores]) for name in names}

    def metrics(self) -> dict[str, float]:
        """What the servers' client counted since the last call."""
        counts = self.fleet.counts
        new, self._told = counts - self._told, Counter(counts)
        failed = {f"teacher/{kind}": float(n) for kind, n in new.items() if kind.startswith("failed/")}
        return failed | {
            "teacher/retries": float(new["retries"]),
            "teacher/replica_failures": sum(failed.values()),
        }


def spans_of(mask: Tensor) -> list[tuple[int, int]]:
    """Where a row's mask ``[time]`` is true: first token and one behind the last, in order."""
    steps = nn.functional.pad(mask.int(), (1, 1)).diff()
    return list(zip((steps == 1).nonzero()[:, 0].tolist(), (steps == -1).nonzero()[:, 0].tolist(), strict=True))
