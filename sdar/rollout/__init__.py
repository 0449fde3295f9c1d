"""The agent loop: environments in one process or many, finished episodes leave at once, every episode ends with a status."""

from sdar.rollout.loop import AgentLoop as AgentLoop
from sdar.rollout.loop import Request as Request
from sdar.rollout.loop import Rollout as Rollout
from sdar.rollout.pool import EnvPool as EnvPool
from sdar.rollout.pool import LocalPool as LocalPool
from sdar.rollout.pool import WorkerPool as WorkerPool
from sdar.rollout.rows import collate as collate
from sdar.rollout.rows import make_rows as make_rows
