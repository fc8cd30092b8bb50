"""What begins the key of each kind of random draw, so that no two kinds share a generator."""

ORDER, VIEW, OTHER_VIDEO, HOLDOUT, FRACTION, HALF, DIRECTION = 1, 2, 3, 4, 5, 6, 7
