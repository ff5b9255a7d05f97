"""Rich or lazy learning: what of a network moved in training, and how the rank of its start decides that."""
