"""Fewer tokens through an image transformer: schedules, the towers that are pruned, Zero-TPrune and what it beats."""
