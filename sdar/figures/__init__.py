"""``sdar figures``: the figures and tables of the papers, drawn from what runs left; a function each, registered in `sdar.figures.base`."""
