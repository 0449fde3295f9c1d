"""Many processes: what they tell each other, how networks lie on them, and Lightning's strategies made for it."""
