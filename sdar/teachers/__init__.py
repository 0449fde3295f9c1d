"""Teachers: whose weights, and what they may see."""

from sdar.teachers.views import SkillView as SkillView
from sdar.teachers.weights import InitialTeacher as InitialTeacher
from sdar.teachers.weights import LiveTeacher as LiveTeacher
