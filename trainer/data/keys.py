"""First elements of the keys of random draws, one per kind, so that no two kinds share a generator."""

ORDER, VIEW, OTHER_VIDEO, HOLDOUT, FRACTION, HALF, DIRECTION, SHUFFLED, LABELLED = range(1, 10)
