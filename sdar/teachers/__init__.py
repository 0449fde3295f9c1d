"""Teachers: whose weights, and what they may see."""

from sdar.teachers.aligned import AlignedTeacher as AlignedTeacher
from sdar.teachers.served import ServedTeacher as ServedTeacher
from sdar.teachers.views import FeedbackView as FeedbackView
from sdar.teachers.views import FirstOf as FirstOf
from sdar.teachers.views import HindsightView as HindsightView
from sdar.teachers.views import HintView as HintView
from sdar.teachers.views import PlainView as PlainView
from sdar.teachers.views import SiblingView as SiblingView
from sdar.teachers.views import SkillView as SkillView
from sdar.teachers.views import SolutionView as SolutionView
from sdar.teachers.weights import EMATeacher as EMATeacher
from sdar.teachers.weights import ExternalTeacher as ExternalTeacher
from sdar.teachers.weights import InitialTeacher as InitialTeacher
from sdar.teachers.weights import LiveTeacher as LiveTeacher
from sdar.teachers.weights import RoutedTeacher as RoutedTeacher
from sdar.teachers.weights import StaleTeacher as StaleTeacher
