"""Skills: short texts that tell an agent how to act, and the banks that hold them.

`SkillBank.load` tells three formats apart by what it finds:

* ours: a folder of Markdown with a ``mapping.yaml``, whose entries read
  ``heat: {file: heat.md, families: [...], keywords: [...], always: false}``. ``file: facts.md#mug`` takes the section below
  the heading "mug", so that one file holds many short skills;
* the folder of the SDAR repository (arXiv:2605.15155): ``skill_mapping.json`` beside Markdown files;
* SkillRL's ``claude_style_skills*.json``. Every section becomes one skill; unlike SkillRL, which cuts to its first six
  principles and five mistakes, all of a section is given.

Each skill says which tasks it is for: all of them (`always`), those of its `families`, or those whose instruction has one of
its `keywords` as a word. Only the instruction is searched, never the prompt around it: a template or a page of search results
does not choose skills, which makes the choice the same in every turn. The SDAR repository searches the whole prompt, by
substring ("hat" is found in "that"), on WebShop and for Skill-GRPO; its teachers of ALFWorld and Search-QA go by the family, too.
"""

from typing import TYPE_CHECKING

from sdar.faces import lazy

if TYPE_CHECKING:
    from sdar.skills.bank import SkillBank as SkillBank
    from sdar.skills.bank import check_count as check_count
    from sdar.skills.skill import FACT_TEMPLATE as FACT_TEMPLATE
    from sdar.skills.skill import Skill as Skill
    from sdar.skills.skill import retrieval as retrieval
    from sdar.skills.skill import seeded as seeded

__getattr__, __dir__, __all__ = lazy(__name__)
