"""Official data and models: which there are, and how they come to this machine, from the network or from files at hand."""
