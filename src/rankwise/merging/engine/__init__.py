"""What carries a merge out: configuration, models, which tensor meets which, and what is written."""
