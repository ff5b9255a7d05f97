"""What a `rankwise.compression.ThinKCache` is made of: scores, rows, layers, attention, a plan of its bytes."""
