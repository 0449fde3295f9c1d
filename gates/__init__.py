"""Token gates: how much each token trusts its teacher, in [0, 1]. One file each; add a file to add a gate."""

from sdar.gates.constant import ConstantGate as ConstantGate
from sdar.gates.entropy import EntropyGate as EntropyGate
from sdar.gates.gap import GapGate as GapGate
from sdar.gates.soft_or import SoftOrGate as SoftOrGate
