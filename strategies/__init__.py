"""Training methods, one file each. (Lightning's word "strategy" for DDP or DeepSpeed is `--trainer.strategy`; that is not here.)"""

from sdar.strategies.behavior_cloning import BehaviorCloning as BehaviorCloning
from sdar.strategies.grpo import GRPO as GRPO
from sdar.strategies.grpo_opsd import GRPOWithOPSD as GRPOWithOPSD
from sdar.strategies.opsd import OPSD as OPSD
from sdar.strategies.sdar import SDAR as SDAR
from sdar.strategies.skill_grpo import SkillGRPO as SkillGRPO
from sdar.strategies.skill_prompt import SkillPrompt as SkillPrompt
