"""Code runners: untrusted code in, its output out."""

from sdar.sandbox.base import CodeRunner as CodeRunner
from sdar.sandbox.base import Limits as Limits
from sdar.sandbox.base import Result as Result
from sdar.sandbox.base import RunStatus as RunStatus
from sdar.sandbox.bubblewrap import BubblewrapRunner as BubblewrapRunner
from sdar.sandbox.choose import AutoRunner as AutoRunner
from sdar.sandbox.choose import best_runner as best_runner
from sdar.sandbox.fusion import FusionRunner as FusionRunner
from sdar.sandbox.landlock import LandlockRunner as LandlockRunner
from sdar.sandbox.limits_only import LimitsOnlyRunner as LimitsOnlyRunner
