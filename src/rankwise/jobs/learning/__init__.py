"""A stream of tasks out of a YAML file, learned in a row into one model."""
