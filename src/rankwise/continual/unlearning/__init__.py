"""The parts of forgetting on request: features, detectors, the router, adapters, measures, and how they are kept."""
