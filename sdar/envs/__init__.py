"""The worlds that agents act in, and how they are told to a model."""

from sdar.envs.gymnasium import GymnasiumEnv as GymnasiumEnv
from sdar.envs.household import HouseholdEnv as HouseholdEnv
from sdar.envs.protocols import CompactProtocol as CompactProtocol
from sdar.envs.protocols import ThinkActProtocol as ThinkActProtocol
