"""The name under which scripts import the command's Trainer; it stands in `sdar.cli.trainer`."""

from sdar.cli.trainer import AgentTrainer as AgentTrainer
from sdar.cli.trainer import read_run as read_run
