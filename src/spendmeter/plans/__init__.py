"""Plans: what a piece of work was estimated to use, and how what it used compares."""
