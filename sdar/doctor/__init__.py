"""``sdar doctor``: what of a machine and of a run's settings would end or spoil the run, before it is begun."""
