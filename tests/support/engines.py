"""The quickstart's policy behind vLLM, and the same in this process."""

from sampled import told

from sdar.parts import SampleKey
from sdar.samplers import TorchSampler

POLICY = "conf/quickstart/policy"
VOCABULARY = 437
NEW = 12
CONTEXT = 256
PROMPTS = [told(i, 20 + 3 * i, VOCABULARY) for i in range(10)]
DRAWS = [SampleKey(0, f"task-{i}", 0, 0) for i in range(10)]
COMMAND = """
import sys
from sdar.cli import main
sys.exit(main(["serve-policy", "--engine", "vllm", "--engine.model", sys.argv[1], "--engine.dtype", "float32",
               "--engine.context", "256", "--engine.eager", "true", "--port", sys.argv[2], *OPTIONS]))
"""


def command(*options):
    """The program of a server with vLLM, for `PolicyServer`."""
    return COMMAND.replace("*OPTIONS", ", ".join(map(repr, options)))


def in_process(chat, **options):
    """The sampler that vLLM is compared with."""
    sampler = TorchSampler(**{"max_new_tokens": NEW} | options)
    sampler.bind(chat.tokenizer, chat.stop_ids, CONTEXT)
    return sampler
