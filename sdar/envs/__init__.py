"""The worlds that agents act in, and how they are told to a model."""

from sdar.envs.alfworld import ALFWorldEnv as ALFWorldEnv
from sdar.envs.code_env import CodeEnv as CodeEnv
from sdar.envs.code_protocol import FencedCodeProtocol as FencedCodeProtocol
from sdar.envs.code_protocol import HermesCodeProtocol as HermesCodeProtocol
from sdar.envs.code_protocol import TextCodeProtocol as TextCodeProtocol
from sdar.envs.gymnasium import GymnasiumEnv as GymnasiumEnv
from sdar.envs.household import HouseholdEnv as HouseholdEnv
from sdar.envs.math_protocol import FencedMathProtocol as FencedMathProtocol
from sdar.envs.math_protocol import HermesMathProtocol as HermesMathProtocol
from sdar.envs.math_protocol import TextMathProtocol as TextMathProtocol
from sdar.envs.mathematics import MathEnv as MathEnv
from sdar.envs.protocols import CompactProtocol as CompactProtocol
from sdar.envs.protocols import CountedThinkActProtocol as CountedThinkActProtocol
from sdar.envs.protocols import GeneralProtocol as GeneralProtocol
from sdar.envs.protocols import ThinkActProtocol as ThinkActProtocol
from sdar.envs.science import ScienceEnv as ScienceEnv
from sdar.envs.science_protocol import HermesScienceProtocol as HermesScienceProtocol
from sdar.envs.search import EncyclopediaBackend as EncyclopediaBackend
from sdar.envs.search import SearchEnv as SearchEnv
from sdar.envs.search_protocol import CompactSearchProtocol as CompactSearchProtocol
from sdar.envs.search_protocol import SearchR1Protocol as SearchR1Protocol
from sdar.envs.search_protocol import SearchWindowProtocol as SearchWindowProtocol
from sdar.envs.webshop import WebShopEnv as WebShopEnv
from sdar.envs.webshop_http import WebShopHTTPEnv as WebShopHTTPEnv
from sdar.envs.webshop_protocol import WebShopProtocol as WebShopProtocol
from sdar.envs.webshop_text_env import WebShopTextEnv as WebShopTextEnv
