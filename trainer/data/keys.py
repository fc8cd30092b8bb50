"""First elements of the keys of random draws, one per kind, so that no two kinds share a generator."""

ORDER, VIEW, OTHER_VIDEO, HOLDOUT, FRACTION, HALF, DIRECTION = 1, 2, 3, 4, 5, 6, 7
