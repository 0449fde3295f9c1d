"""Judges: good or bad, turn by turn, by somebody who knows the gold answer and how the attempt went on."""

from sdar.judges.causal import CausalJudge as CausalJudge
from sdar.judges.endpoint import EndpointJudge as EndpointJudge
from sdar.judges.evidence import EvidenceJudge as EvidenceJudge
