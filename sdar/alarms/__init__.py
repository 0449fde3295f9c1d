"""What tells a person that a run goes wrong: rules over its metrics, asked after every iteration and validation."""

from typing import TYPE_CHECKING

from sdar.faces import lazy

if TYPE_CHECKING:
    from sdar.alarms.base import Alarm as Alarm
    from sdar.alarms.base import Bound as Bound
    from sdar.alarms.base import Finding as Finding
    from sdar.alarms.base import Measured as Measured
    from sdar.alarms.policy import EntropyCollapse as EntropyCollapse
    from sdar.alarms.policy import FlatGroups as FlatGroups
    from sdar.alarms.policy import InvalidActions as InvalidActions
    from sdar.alarms.policy import LengthCollapse as LengthCollapse
    from sdar.alarms.policy import LengthExplosion as LengthExplosion
    from sdar.alarms.policy import Narrowing as Narrowing
    from sdar.alarms.policy import RepeatedActions as RepeatedActions
    from sdar.alarms.policy import SuccessCollapse as SuccessCollapse
    from sdar.alarms.teacher import ClipNeverReached as ClipNeverReached
    from sdar.alarms.teacher import GapGrows as GapGrows
    from sdar.alarms.teacher import GateSaturated as GateSaturated
    from sdar.alarms.teacher import Mismatch as Mismatch
    from sdar.alarms.teacher import OneToken as OneToken
    from sdar.alarms.teacher import SkillsCopied as SkillsCopied
    from sdar.alarms.teacher import TeacherEmpty as TeacherEmpty
    from sdar.alarms.teacher import TeacherNoBetter as TeacherNoBetter
    from sdar.alarms.teacher import TeacherPrefersFailure as TeacherPrefersFailure
    from sdar.alarms.teacher import TeacherSilent as TeacherSilent
    from sdar.alarms.teacher import WeightsCapped as WeightsCapped
    from sdar.alarms.watch import Alarms as Alarms
    from sdar.alarms.watch import replay as replay

__getattr__, __dir__, __all__ = lazy(__name__)
