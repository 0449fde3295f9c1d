import sys

import pytest
from engines import POLICY
from policy_servers import PolicyServer

from sdar.policies import PretrainedPolicy
from sdar.rollout.chat import ChatFormat


@pytest.fixture(scope="module")
def policy():
    return PretrainedPolicy(POLICY)


@pytest.fixture(scope="module")
def chat(policy):
    return ChatFormat(policy.load_tokenizer(), {}, "quickstart")


@pytest.fixture(scope="module")
def server(request):
    """A server in a process of its own; ``PROGRAM`` of the module says which."""
    server = PolicyServer(POLICY, request.module.PROGRAM, python=sys.executable)
    try:
        yield server.wait(300)
    finally:
        server.kill()
