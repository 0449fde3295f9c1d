"""``sdar play``: a world in the terminal, played by a person or, while one watches, by a policy; and stored episodes step by step."""
