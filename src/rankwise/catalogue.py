"""The 27 methods: the single source for ``rankwise methods``, the documentation and the evidence page."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from rankwise.nearest import unknown


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One method.

    Attributes
    ----------
    id, name, family : str
    object : str
        Import path of what a user works with (where it will be, while planned).
    paper : str
        Authors, title and year.
    arxiv : str
        Identifier, empty where none is known.
    claim : str
        The paper's headline claim in one line.
    bench : str
        Name of the recipe that measures it.
    status : {"ready", "planned"}
    """

    id: str
    name: str
    family: str
    object: str
    paper: str
    arxiv: str
    claim: str
    bench: str
    status: Literal["ready", "planned"] = "planned"

    def as_dict(self) -> dict[str, str]:
        """All fields, for JSON."""
        return asdict(self)


def _e(
    id: str,
    name: str,
    family: str,
    object: str,
    paper: str,
    arxiv: str,
    claim: str,
    status: Literal["ready", "planned"] = "planned",
) -> Entry:
    return Entry(
        id=id,
        name=name,
        family=family,
        object=f"rankwise.{family}.{object}",
        paper=paper,
        arxiv=arxiv,
        claim=claim,
        bench=id,
        status=status,
    )


# ruff: noqa: E501  (a row a method)

CATALOGUE: tuple[Entry, ...] = (
    _e(
        "s2lora",
        "S2-LoRA",
        "tuning",
        "S2LoraConfig",
        "Liu, Qin, Peng & Lee, Sparsely Shared LoRA on Whisper for Child Speech Recognition, ICASSP 2024",
        "2309.11756",
        "As good as AdaLoRA in domain with far fewer parameters, better out of domain.",
        "ready",
    ),
    _e(
        "eva",
        "EVA",
        "tuning",
        "EvaConfig",
        "Paischer, Hauzenberger, Schmied, Alkin, Deisenroth & Hochreiter, One Initialization to Rule them All, 2024",
        "2410.07170",
        "Starting LoRA in the directions of most variance converges faster and ends better.",
        "ready",
    ),
    _e(
        "icl-mechanism",
        "Mechanistic ICL classification",
        "dynamics",
        "InductionHead",
        "Reddy, The mechanistic basis of data dependence and abrupt learning in an in-context classification task, ICLR 2024",
        "2312.03002",
        "In-context learning appears abruptly, when an induction head forms, and data statistics decide whether it does.",
    ),
    _e(
        "welore",
        "WeLore",
        "compression",
        "plan",
        "Jaiswal, Yin, Zhang, Liu, Zhao, Tian & Wang, From GaLore to WeLore, 2024",
        "2407.11239",
        "Each matrix compressed to its own rank keeps more than one rank for all, and only the low-rank ones need training.",
        "ready",
    ),
    _e(
        "codyra",
        "CoDyRA",
        "continual",
        "CoDyRA",
        "Lu, Zhao, Xue, Yao, Moore & Gong, Adaptive Rank, Reduced Forgetting, 2024",
        "2412.01004",
        "Ranks selected while learning keep zero-shot ability and what was just learned.",
    ),
    _e(
        "dla",
        "DLA",
        "ranking",
        "DualLearning",
        "Ai, Bi, Luo, Guo & Croft, Unbiased Learning to Rank with Unbiased Propensity Estimation, SIGIR 2018",
        "1804.05938",
        "Ranker and propensity learned together from clicks need no randomised results.",
    ),
    _e(
        "videoicl",
        "VideoICL",
        "prompting",
        "IterativeICL",
        "Kim, Park, Lee, Yeo & Hwang, VideoICL, CVPR 2025",
        "2412.02186",
        "Trying the nearest few examples until the model is sure beats one fixed set.",
        "ready",
    ),
    _e(
        "molrg",
        "Diffusion as subspace clustering",
        "dynamics",
        "MixtureOfLowRankGaussians",
        "Wang, Zhang, Zhang, Chen, Ma & Qu, Diffusion Models Learn Low-Dimensional Distributions via Subspace Clustering, 2024",
        "2409.02426",
        "On a union of subspaces, denoising is subspace clustering, and samples grow with the intrinsic dimension.",
    ),
    _e(
        "lama",
        "LAMA",
        "compression",
        "LamaClassifier",
        "Mehta, Rangwala & Ramakrishnan, Low Rank Factorization for Compact Multi-Head Self-Attention, 2019",
        "1912.00835",
        "A factorised affinity matrix gives all heads without parameters of their own.",
        "ready",
    ),
    _e(
        "owlore",
        "OwLore",
        "optim",
        "OwLore",
        "Li, Yin, Gao & Liu, OwLore, 2024",
        "2405.18380",
        "Sampling layers by their outliers, with low-rank gradients, fine-tunes everything in a fraction of the memory.",
        "ready",
    ),
    _e(
        "dq-lore",
        "DQ-LoRe",
        "prompting",
        "DQLoReSelector",
        "Xiong, Li, Zheng, Guo et al., DQ-LoRe, ICLR 2024",
        "2310.02954",
        "Two queries and a low-rank re-ranking choose better worked examples.",
        "ready",
    ),
    _e(
        "o3",
        "O3 unlearning",
        "continual",
        "O3",
        "Gao, Wang, Ding, Weng, Wang & Zhu, On Large Language Model Continual Unlearning, ICLR 2025",
        "2407.10223",
        "Orthogonal adapters with an out-of-distribution router unlearn request after request without retained data.",
    ),
    _e(
        "zero-tprune",
        "Zero-TPrune",
        "vision",
        "ZeroTPrune",
        "Wang, Dedhia & Jha, Zero-TPrune, CVPR 2024",
        "2305.17328",
        "Tokens ranked on the attention graph can be dropped from a pretrained transformer without training.",
    ),
    _e(
        "tte-depth",
        "TTE depth",
        "prompting",
        "TextDepth",
        "Seegmiller & Preum, Statistical Depth for Ranking and Characterizing Transformer-Based Text Embeddings, EMNLP 2023",
        "2310.15010",
        "A depth of embeddings orders texts from central to outlying and tells corpora apart.",
        "ready",
    ),
    _e(
        "vida",
        "ViDA",
        "continual",
        "ViDA",
        "Liu, Yang et al., ViDA: Homeostatic Visual Domain Adapter for Continual Test Time Adaptation, ICLR 2024",
        "2306.04344",
        "A low-rank and a high-rank adapter together follow a changing domain without forgetting.",
    ),
    _e(
        "think",
        "ThinK",
        "compression",
        "ThinKCache",
        "Xu et al., ThinK: Thinner Key Cache by Query-Driven Pruning, ICLR 2025",
        "2407.21018",
        "Key channels that the queries do not use can leave the cache.",
    ),
    _e(
        "equilibrium-ranking",
        "Equilibrium-Ranking",
        "prompting",
        "EquilibriumRanker",
        "Jacob, Shen, Farina & Andreas, The Consensus Game, ICLR 2024",
        "2310.09139",
        "The equilibrium of a generator and a discriminator ranks answers better than either.",
        "ready",
    ),
    _e(
        "rtsvm",
        "R-TSVM merging",
        "merging",
        "rtsvm",
        "Yang et al., Mix Data or Merge Models?, 2025",
        "2502.06876",
        "Outlier-aware weights and adaptive ranks merge models with less interference.",
        "ready",
    ),
    _e(
        "clip-lit",
        "CLIP-LIT",
        "vision",
        "ClipLit",
        "Liang, Li, Zhou, Feng & Loy, Iterative Prompt Learning for Unsupervised Backlit Image Enhancement, ICCV 2023",
        "2303.17569",
        "Learned prompts guide backlit enhancement without paired ground truth.",
    ),
    _e(
        "hello",
        "HeLlO",
        "vision",
        "HeLlO",
        "Yu, Liu, Chen, Ye & Wang, Heavy Labels Out!, 2024",
        "2408.08201",
        "A low-rank projector replaces gigabytes of soft labels in dataset distillation.",
    ),
    _e(
        "singular-likelihood",
        "Likelihood of a singular distribution",
        "distributions",
        "SingularGenerativeEstimator",
        "Chae, Kim, Kim & Lin, A likelihood approach to nonparametric estimation of a singular distribution using deep generative models, JMLR 2023",
        "2105.04046",
        "Perturbing the data makes likelihood estimate distributions on low-dimensional sets.",
        "ready",
    ),
    _e(
        "kde-large-d",
        "KDE in large dimension",
        "distributions",
        "HighDimKDE",
        "Biroli & Mézard, Kernel Density Estimators in Large Dimensions, 2024",
        "2408.05807",
        "Kernel estimates pass through three regimes, and the best bandwidth lies where few points carry the sum.",
        "ready",
    ),
    _e(
        "g-rank",
        "G-Rank",
        "ranking",
        "GRank",
        "Gold & Pouwelse, G-Rank: Unsupervised Continuous Learn-to-Rank for Edge Devices in a P2P Network, 2023",
        "2301.12530",
        "Peers that gossip clicks rank without a server.",
    ),
    _e(
        "perseval",
        "PerSEval",
        "ranking",
        "perseval",
        "Dasgupta, Chander, Borad, Motiyani & Chakraborty, PerSEval, TMLR 2024",
        "2407.00453",
        "Personalisation of summaries is measurable apart from accuracy.",
    ),
    _e(
        "flexible-survival",
        "Flexible parametric survival",
        "distributions",
        "PGWRegressionFitter",
        "Burke, Jones & Noufaily, A Flexible Parametric Modelling Framework for Survival Analysis, JRSS C 2020",
        "1901.03212",
        "One parametric family covers the usual hazards, cure, AFT and PH.",
        "ready",
    ),
    _e(
        "rich-lazy",
        "Rich and lazy learning",
        "dynamics",
        "RichLazy",
        "Liu, Baratin, Cornford, Mihalas, Shea-Brown & Lajoie, How connectivity structure shapes rich and lazy learning in neural circuits, ICLR 2024",
        "2310.08513",
        "Low-rank initial weights learn richly, high-rank ones lazily.",
    ),
    _e(
        "quantile-aggregation",
        "Quantile aggregation",
        "distributions",
        "QuantileAggregator",
        "Fakoor, Kim, Mueller, Smola & Tibshirani, Flexible Model Aggregation for Quantile Regression, JMLR 2023",
        "2103.00083",
        "Weights by model, level and input aggregate quantile models better than any of them.",
        "ready",
    ),
)


def entry(id: str) -> Entry:
    """The catalogue entry of that id; an unknown one is an error that offers the nearest."""
    found = {e.id: e for e in CATALOGUE}
    if id not in found:
        raise unknown("method", id, found)
    return found[id]
