"""Is it any good? How close and how diverse the samples of a run are, and whether they lower a classifier's
error."""
