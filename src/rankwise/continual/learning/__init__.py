"""What a `rankwise.continual.CodyraLearner` keeps of its tasks, on disk too, and how it knows examples again."""
