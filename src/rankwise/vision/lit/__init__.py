"""The parts of CLIP-LIT: prompts, network, losses, the map of light, pictures."""
