"""Training methods, one file each. (Lightning's word "strategy" for DDP or DeepSpeed is `--trainer.strategy`; that is not here.)"""

from sdar.strategies.behavior_cloning import BehaviorCloning as BehaviorCloning
from sdar.strategies.critic_search import CriticSearch as CriticSearch
from sdar.strategies.gated_opsd import GatedOPSD as GatedOPSD
from sdar.strategies.gigpo import GiGPO as GiGPO
from sdar.strategies.grpo import GRPO as GRPO
from sdar.strategies.grpo_opsd import GRPOWithOPSD as GRPOWithOPSD
from sdar.strategies.hdpo import HDPO as HDPO
from sdar.strategies.opd import OPD as OPD
from sdar.strategies.opsd import OPSD as OPSD
from sdar.strategies.rlsd import RLSD as RLSD
from sdar.strategies.sd_search import SDSearch as SDSearch
from sdar.strategies.sdar import SDAR as SDAR
from sdar.strategies.sdpo import SDPO as SDPO
from sdar.strategies.sft import SFT as SFT
from sdar.strategies.skill_grpo import SkillGRPO as SkillGRPO
from sdar.strategies.skill_prompt import SkillPrompt as SkillPrompt
from sdar.strategies.skill_sd import SkillSD as SkillSD
from sdar.strategies.sod import SOD as SOD
from sdar.strategies.tcod import TCOD as TCOD
from sdar.strategies.tip import TIP as TIP
from sdar.strategies.top_k_opd import TopKOPD as TopKOPD
from sdar.strategies.topd import TOPD as TOPD
