"""The methods: the single source for ``rankwise methods``, the README's tables, the docs and every count of methods."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from rankwise.nearest import unknown

FAMILIES = (
    "tuning", "optim", "compression", "merging", "prompting", "ranking", "continual", "vision", "distributions", "dynamics"
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One method.

    Attributes
    ----------
    id, name, family : str
    object : str
        What a user works with; its import path is `path` (where it will be, while planned).
    paper : str
        Authors, title and year.
    arxiv : str
        Identifier.
    claim : str
        The paper's headline claim in one line.
    status : {"ready", "planned"}
    command : str
        The shortest command that uses it; empty where there is none.
    replaces : str
        What people use for the same today.
    models, tasks, result : str
        What it works on, for which tasks, and in which form the result leaves.
    """

    id: str
    name: str
    family: str
    object: str
    paper: str
    arxiv: str
    claim: str
    status: Literal["ready", "planned"] = "planned"
    command: str = ""
    replaces: str = ""
    models: str = ""
    tasks: str = ""
    result: str = ""

    @property
    def path(self) -> str:
        """Import path of the object."""
        return f"rankwise.{self.family}.{self.object}"

    def as_dict(self) -> dict[str, str]:
        """All fields and the path, for JSON."""
        return {**asdict(self), "path": self.path}


# ruff: noqa: E501  (a row a method)

CATALOGUE: tuple[Entry, ...] = (
    Entry(
        id="s2lora",
        name="S2-LoRA",
        family="tuning",
        object="S2LoraConfig",
        paper="Liu, Qin, Peng & Lee, Sparsely Shared LoRA on Whisper for Child Speech Recognition, ICASSP 2024",
        arxiv="2309.11756",
        claim="As good as AdaLoRA in domain with far fewer parameters, better out of domain.",
        status="ready",
        command="rankwise adapt --methods s2lora",
        replaces="peft's LoRA, AdaLoRA",
        models="encoders, decoders, encoder-decoders",
        tasks="any",
        result="plain LoRA, merged model",
    ),
    Entry(
        id="eva",
        name="EVA",
        family="tuning",
        object="EvaConfig",
        paper="Paischer, Hauzenberger, Schmied, Alkin, Deisenroth & Hochreiter, One Initialization to Rule them All, 2024",
        arxiv="2410.07170",
        claim="Starting LoRA in the directions of most variance converges faster and ends better.",
        status="ready",
        command="rankwise adapt --methods eva",
        replaces="peft's random start and its EVA",
        models="encoders, decoders, encoder-decoders",
        tasks="any",
        result="is a plain LoRA; merged model",
    ),
    Entry(
        id="icl",
        name="In-context learning, its mechanism",
        family="dynamics",
        object="InContextExperiment",
        paper="Reddy, The mechanistic basis of data dependence and abrupt learning in an in-context classification task, ICLR 2024",
        arxiv="2312.03002",
        claim="In-context learning appears abruptly, when an induction head forms, and data statistics decide whether it does.",
        status="ready",
        command="rankwise dynamics icl",
        replaces="scripts of one run each",
        models="its own; decoders with eager attention, to be measured",
        tasks="when and why a model learns from its context",
        result="a table of measures over training, weights, a page",
    ),
    Entry(
        id="welore",
        name="WeLore",
        family="compression",
        object="plan",
        paper="Jaiswal, Yin, Zhang, Liu, Zhao, Tian & Wang, From GaLore to WeLore, 2024",
        arxiv="2407.11239",
        claim="Each matrix compressed to its own rank keeps more than one rank for all, and only the low-rank ones need training.",
        status="ready",
        command="rankwise compress",
        replaces="one rank for all matrices",
        models="decoders",
        tasks="language modelling",
        result="transformers folder, dense model",
    ),
    Entry(
        id="codyra",
        name="CoDyRA",
        family="continual",
        object="CodyraLearner",
        paper="Lu, Zhao, Xue, Yao, Moore & Gong, Take Only What You Need: Rank Minimization as an Implicit Forgetting Regularizer in Continual Learning, Findings of EMNLP 2026",
        arxiv="2412.01004",
        claim="Ranks selected while learning keep zero-shot ability and what was just learned.",
        status="ready",
        command="rankwise continual learn",
        replaces="LoRA task after task, EWC",
        models="CLIPs, classifiers, sentence encoders, decoders",
        tasks="a stream of tasks",
        result="the original model, with other weights; plain LoRA",
    ),
    Entry(
        id="dla",
        name="DLA",
        family="ranking",
        object="DualLearningRanker",
        paper="Ai, Bi, Luo, Guo & Croft, Unbiased Learning to Rank with Unbiased Propensity Estimation, SIGIR 2018",
        arxiv="1804.05938",
        claim="Ranker and propensity learned together from clicks need no randomised results.",
        status="ready",
        command="rankwise rank fit",
        replaces="clicks taken for relevance",
        models="networks, any torch module",
        tasks="ranking from click logs",
        result="safetensors, weights for LightGBM",
    ),
    Entry(
        id="videoicl",
        name="VideoICL",
        family="prompting",
        object="IterativeICL",
        paper="Kim, Park, Lee, Yeo & Hwang, VideoICL, CVPR 2025",
        arxiv="2412.02186",
        claim="Trying the nearest few examples until the model is sure beats one fixed set.",
        status="ready",
        replaces="all examples in one prompt",
        models="chat and vision-language models",
        tasks="questions about texts, images, videos",
        result="-",
    ),
    Entry(
        id="molrg",
        name="Diffusion as subspace clustering",
        family="dynamics",
        object="SubspaceClustering",
        paper="Wang, Zhang, Zhang, Chen, Ma & Qu, Diffusion Models Learn Low-Dimensional Distributions via Subspace Clustering, 2024",
        arxiv="2409.02426",
        claim="On a union of subspaces, denoising is subspace clustering, and samples grow with the intrinsic dimension.",
        status="ready",
        command="rankwise dynamics subspaces",
        replaces="k-means, full Gaussian mixtures, spectral clustering",
        models="tables of numbers; any torch denoiser (dimension at a point)",
        tasks="clusters that are subspaces, how many and of which dimension; denoising",
        result="a scikit-learn estimator; a torch module; a folder with labels and subspaces",
    ),
    Entry(
        id="lama",
        name="LAMA",
        family="compression",
        object="LamaClassifier",
        paper="Mehta, Rangwala & Ramakrishnan, Low Rank Factorization for Compact Multi-Head Self-Attention, 2019",
        arxiv="1912.00835",
        claim="A factorised affinity matrix gives all heads without parameters of their own.",
        status="ready",
        command="rankwise adapt --model lama",
        replaces="a Transformer layer or mean pooling",
        models="its own, on word embeddings",
        tasks="classification, regression",
        result="transformers folder",
    ),
    Entry(
        id="owlore",
        name="OwLore",
        family="optim",
        object="OwLore",
        paper="Li, Yin, Gao & Liu, OwLore, 2024",
        arxiv="2405.18380",
        claim="Sampling layers by their outliers, with low-rank gradients, fine-tunes everything in a fraction of the memory.",
        status="ready",
        command="rankwise adapt --optimizer owlore",
        replaces="AdamW, galore-torch, LISA",
        models="any torch module in blocks",
        tasks="any",
        result="the whole model",
    ),
    Entry(
        id="dq-lore",
        name="DQ-LoRe",
        family="prompting",
        object="DQLoReSelector",
        paper="Xiong, Li, Zheng, Guo et al., DQ-LoRe, ICLR 2024",
        arxiv="2310.02954",
        claim="Two queries and a low-rank re-ranking choose better worked examples.",
        status="ready",
        command="rankwise select",
        replaces="nearest or BM25 examples",
        models="decoders, servers",
        tasks="few-shot prompts",
        result="JSON lines of prompts",
    ),
    Entry(
        id="o3",
        name="O3 unlearning",
        family="continual",
        object="O3Unlearner",
        paper="Gao, Wang, Ding, Weng, Wang & Zhu, On Large Language Model Continual Unlearning, ICLR 2025",
        arxiv="2407.10223",
        claim="Orthogonal adapters with an out-of-distribution router unlearn request after request without retained data.",
        status="ready",
        command="rankwise continual forget",
        replaces="gradient ascent, NPO, a list of forbidden words",
        models="decoders",
        tasks="requests to forget, one after another",
        result="a folder of plain LoRA and detectors; the model as it was",
    ),
    Entry(
        id="zero-tprune",
        name="Zero-TPrune",
        family="compression",
        object="zero_tprune",
        paper="Wang, Dedhia & Jha, Zero-TPrune: Zero-Shot Token Pruning through Leveraging of the Attention Graph in Pre-Trained Transformers, CVPR 2024",
        arxiv="2305.17328",
        claim="Tokens ranked on the attention graph can be dropped from a pretrained transformer without training.",
        status="ready",
        command="rankwise tokens",
        replaces="token merging (ToMe), pruning by attention to CLS",
        models="ViT, DeiT, CLIP's image tower, timm's VisionTransformer",
        tasks="image classification, zero-shot images",
        result="the same model, faster; undone at any time",
    ),
    Entry(
        id="tte-depth",
        name="TTE depth",
        family="prompting",
        object="TextDepth",
        paper="Seegmiller & Preum, Statistical Depth for Ranking and Characterizing Transformer-Based Text Embeddings, EMNLP 2023",
        arxiv="2310.15010",
        claim="A depth of embeddings orders texts from central to outlying and tells corpora apart.",
        status="ready",
        command="rankwise compare",
        replaces="eyeballing embeddings",
        models="text encoders",
        tasks="comparing corpora",
        result="-",
    ),
    Entry(
        id="vida",
        name="ViDA",
        family="continual",
        object="TestTimeAdapter",
        paper="Liu, Yang et al., ViDA: Homeostatic Visual Domain Adapter for Continual Test Time Adaptation, ICLR 2024",
        arxiv="2306.04344",
        claim="A low-rank and a high-rank adapter together follow a changing domain without forgetting.",
        status="ready",
        command="rankwise continual adapt",
        replaces="TENT and CoTTA from their repositories",
        models="image classifiers, text classifiers",
        tasks="streams of unlabelled batches",
        result="predictions, a state to go on from; undone at any time",
    ),
    Entry(
        id="think",
        name="ThinK",
        family="compression",
        object="ThinKCache",
        paper="Xu et al., ThinK: Thinner Key Cache by Query-Driven Pruning, ICLR 2025",
        arxiv="2407.21018",
        claim="Key channels that the queries do not use can leave the cache.",
        status="ready",
        command="rankwise cache",
        replaces="whole and quantised caches, zeroed channels",
        models="decoders",
        tasks="long prompts",
        result="a transformers Cache",
    ),
    Entry(
        id="equilibrium-ranking",
        name="Equilibrium-Ranking",
        family="prompting",
        object="EquilibriumRanker",
        paper="Jacob, Shen, Farina & Andreas, The Consensus Game, ICLR 2024",
        arxiv="2310.09139",
        claim="The equilibrium of a generator and a discriminator ranks answers better than either.",
        status="ready",
        command="rankwise answer",
        replaces="greedy answers, self-consistency",
        models="decoders, servers",
        tasks="choosing among answers",
        result="JSON lines of answers",
    ),
    Entry(
        id="rtsvm",
        name="R-TSVM merging",
        family="merging",
        object="rtsvm",
        paper="Yang et al., Mix Data or Merge Models?, 2025",
        arxiv="2502.06876",
        claim="Outlier-aware weights and adaptive ranks merge models with less interference.",
        status="ready",
        command="rankwise merge",
        replaces="mergekit",
        models="any transformers checkpoints of one base, LoRA adapters",
        tasks="merging",
        result="transformers folder",
    ),
    Entry(
        id="clip-lit",
        name="CLIP-LIT",
        family="vision",
        object="BacklitEnhancer",
        paper="Liang, Li, Zhou, Feng & Loy, Iterative Prompt Learning for Unsupervised Backlit Image Enhancement, ICCV 2023",
        arxiv="2303.17569",
        claim="Learned prompts guide backlit enhancement without paired ground truth.",
        status="ready",
        command="rankwise enhance",
        replaces="gamma, CLAHE, Zero-DCE",
        models="CLIPs with a ViT",
        tasks="photographs and videos against the light",
        result="the pictures; a network of safetensors",
    ),
    Entry(
        id="hello",
        name="HeLlO",
        family="vision",
        object="Distiller",
        paper="Yu, Liu, Chen, Ye & Wang, Heavy Labels Out! Dataset Distillation with Label Space Lightening, ICCV 2025",
        arxiv="2408.08201",
        claim="A low-rank projector replaces gigabytes of soft labels in dataset distillation.",
        status="ready",
        command="rankwise distill",
        replaces="files of soft labels (RDED, SRe2L), a random subset",
        models="CLIP, any image encoder with a head",
        tasks="folders of pictures by class",
        result="a few pictures and adapters; students trained from them",
    ),
    Entry(
        id="singular-likelihood",
        name="Likelihood of a singular distribution",
        family="distributions",
        object="SingularGenerativeEstimator",
        paper="Chae, Kim, Kim & Lin, A likelihood approach to nonparametric estimation of a singular distribution using deep generative models, JMLR 2023",
        arxiv="2105.04046",
        claim="Perturbing the data makes likelihood estimate distributions on low-dimensional sets.",
        status="ready",
        replaces="VAEs fitted to thin data",
        models="tables of numbers",
        tasks="sampling",
        result="safetensors",
    ),
    Entry(
        id="kde-large-d",
        name="KDE in large dimension",
        family="distributions",
        object="HighDimKDE",
        paper="Biroli & Mézard, Kernel Density Estimators in Large Dimensions, 2024",
        arxiv="2408.05807",
        claim="Kernel estimates pass through three regimes, and the best bandwidth lies where few points carry the sum.",
        status="ready",
        replaces="scikit-learn's KernelDensity",
        models="tables of numbers",
        tasks="density, novelty",
        result="-",
    ),
    Entry(
        id="g-rank",
        name="G-Rank",
        family="ranking",
        object="GRank",
        paper="Gold & Pouwelse, G-Rank: Unsupervised Continuous Learn-to-Rank for Edge Devices in a P2P Network, 2023",
        arxiv="2301.12530",
        claim="Peers that gossip clicks rank without a server.",
        status="ready",
        command="rankwise peer",
        replaces="a search server that counts clicks",
        models="libraries of titled items",
        tasks="search among peers",
        result="a log in SQLite",
    ),
    Entry(
        id="perseval",
        name="PerSEval",
        family="ranking",
        object="perseval",
        paper="Dasgupta, Chander, Borad, Motiyani & Chakraborty, PerSEval, TMLR 2024",
        arxiv="2407.00453",
        claim="Personalisation of summaries is measurable apart from accuracy.",
        status="ready",
        command="rankwise perseval",
        replaces="ROUGE or BERTScore leaderboards",
        models="summaries of any system",
        tasks="comparing personalised summarisers",
        result="leaderboard page, csv",
    ),
    Entry(
        id="flexible-survival",
        name="Flexible parametric survival",
        family="distributions",
        object="PGWRegressionFitter",
        paper="Burke, Jones & Noufaily, A Flexible Parametric Modelling Framework for Survival Analysis, JRSS C 2020",
        arxiv="1901.03212",
        claim="One parametric family covers the usual hazards, cure, AFT and PH.",
        status="ready",
        replaces="lifelines' parametric fitters",
        models="data frames",
        tasks="survival",
        result="lifelines and scikit-survival objects",
    ),
    Entry(
        id="rich-lazy",
        name="Rich and lazy learning",
        family="dynamics",
        object="laziness",
        paper="Liu, Baratin, Cornford, Mihalas, Shea-Brown & Lajoie, How connectivity structure shapes rich and lazy learning in neural circuits, ICLR 2024",
        arxiv="2310.08513",
        claim="Low-rank initial weights learn richly, high-rank ones lazily.",
        status="ready",
        command="rankwise dynamics laziness",
        replaces="a Jacobian by a loop of backward passes",
        models="any torch module, transformers",
        tasks="what training changed",
        result="measures, csv",
    ),
    Entry(
        id="quantile-aggregation",
        name="Quantile aggregation",
        family="distributions",
        object="QuantileAggregator",
        paper="Fakoor, Kim, Mueller, Smola & Tibshirani, Flexible Model Aggregation for Quantile Regression, JMLR 2023",
        arxiv="2103.00083",
        claim="Weights by model, level and input aggregate quantile models better than any of them.",
        status="ready",
        command="rankwise quantile fit",
        replaces="one quantile model, MAPIE",
        models="tables",
        tasks="prediction intervals",
        result="plain folder, csv",
    ),
)


def entry(id: str) -> Entry:
    """The catalogue entry of that id; an unknown one is an error that offers the nearest."""
    found = {e.id: e for e in CATALOGUE}
    if id not in found:
        raise unknown("method", id, found)
    return found[id]


def ready() -> list[Entry]:
    """The methods that are ready, by family in `FAMILIES`' order."""
    return sorted((e for e in CATALOGUE if e.status == "ready"), key=lambda e: FAMILIES.index(e.family))
