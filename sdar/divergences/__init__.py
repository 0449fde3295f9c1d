"""Divergence objectives as parts: per-token losses that say what their value and their gradient estimate."""

from sdar.divergences.lift import Lift as Lift
