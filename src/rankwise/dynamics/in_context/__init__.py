"""Learning from context: the task, the network, its measures, its theory, and training many seeds at once."""
