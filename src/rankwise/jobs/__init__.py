"""The main jobs: what the commands do with a model, data and a budget.

They stand above the method families (`rankwise.tuning`, `rankwise.optim`, `rankwise.compression`), which know nothing
of them; a method that trains brings a line in `rankwise.jobs.methods`.
"""
