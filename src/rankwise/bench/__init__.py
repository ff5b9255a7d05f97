"""One recipe a method: its paper's headline claim measured on real data, with a control that can fail."""

from __future__ import annotations

from typing import NamedTuple


class Recipe(NamedTuple):
    """What a recipe measures, and the module of each of its parts."""

    about: str
    parts: dict[str, str]


RECIPES = {
    "s2lora": Recipe(
        "S2-LoRA against AdaLoRA, LoRA and BitFit: sentiment in four domains, and child-like speech",
        {"text": "s2lora", "speech": "s2lora_speech"},
    ),
    "eva": Recipe("EVA against LoRA: convergence, final score, and what its parts contribute", {"text": "eva"}),
    "owlore": Recipe(
        "OwLore against full AdamW, GaLore, LISA and LoRA on SmolLM2: editorials, and sentiment as text-to-label",
        {"text": "owlore", "label": "owlore_label"},
    ),
    "galore": Recipe("GaLore against full AdamW and a random subspace on SmolLM2", {"text": "galore"}),
    "welore": Recipe(
        "WeLore on SmolLM2: perplexity against uniform and OWL ranks, then tuning factors only",
        {"perplexity": "welore", "tuned": "welore_tuned"},
    ),
    "lama": Recipe("LAMA against other poolings and a Transformer layer on sentiment", {"text": "lama"}),
    "rtsvm": Recipe("R-TSVM against other merges and against mixing the data, on three experts", {"text": "rtsvm"}),
    "tte-depth": Recipe(
        "TTE depth: domains told apart, halves of one domain not; prompts of the deepest examples",
        {"corpora": "tte_depth", "prompts": "depth_prompts"},
    ),
    "dq-lore": Recipe(
        "DQ-LoRe against random, BM25 and nearest examples: sentiment with rationales", {"text": "dq_lore"}
    ),
    "videoicl": Recipe(
        "VideoICL's loop against all examples at once: renamed labels, videos of moving digits",
        {"text": "videoicl", "digits": "moving_digits"},
    ),
    "equilibrium-ranking": Recipe(
        "Equilibrium-Ranking against G, D, MI and SC: capitals, sentiment",
        {"choice": "equilibrium"},
    ),
    "flexible-survival": Recipe(
        "power generalised Weibull on four trials against lifelines' models and Cox; bias and coverage in simulation",
        {"trials": "flexible_survival", "simulation": "survival_simulation"},
    ),
    "singular-likelihood": Recipe(
        "Likelihood of perturbed data near curves, surfaces and digits, against no perturbation and other generators",
        {"manifolds": "singular_manifolds", "digits": "singular_digits"},
    ),
    "kde-large-d": Recipe(
        "kernel density in large dimension: the regimes against theory, bandwidth rules on Gaussians, digits and texts",
        {"regimes": "kde_gaussian", "real": "kde_real"},
    ),
    "quantile-aggregation": Recipe(
        "quantile aggregation on twelve tables: six kinds of weights against each base, averages and free weights",
        {"tables": "quantile_tables"},
    ),
    "whisper": Recipe(
        "the bundled Whisper against CTranslate2's, and the encoder that skips silence", {"speech": "whisper"}
    ),
    "speed": Recipe(
        "speed ratios: streaming and truncated SVD, EVA's start, S2-LoRA's step, speech training; memory and speed of "
        "GaLore, OwLore, WeLore and LAMA; merging against mergekit; prompting; distributions",
        {
            "core": "speed",
            "footprint": "footprint",
            "merging": "merging",
            "prompting": "prompting_speed",
            "distributions": "distributions_speed",
        },
    ),
}
