from rankwise.vision.tokens import zero_tprune as zero_tprune
