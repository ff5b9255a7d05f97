"""Loading a pretrained model: a bundled one by name, a folder, or a hub id.

The bundled models are real: ``minilm`` (all-MiniLM-L6-v2, an encoder of 22.7M parameters), ``smollm2``
(SmolLM2-135M-Instruct, a decoder) and ``whisper-tiny.en`` (speech recognition, 37.8M). They come out of published
packages (`rankwise.archive`) and are cached; smollm2 is a 4-bit GGUF file there, dequantised once to bfloat16, and
Whisper a float16 CTranslate2 file, rewritten once as safetensors of the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from rankwise.archive import Archive, cache_folder, members
from rankwise.files import cached
from rankwise.models.claims import check_model_folder, check_size
from rankwise.models.low_rank import compressed_class, low_rank_layers, record_of
from rankwise.models.names import (  # noqa: F401
    BUNDLED,
    TRAINED,
    Task,
    check_task,
    kept_as,
    located,
    model_fingerprint,
    own_task,
)
from rankwise.nearest import unknown
from rankwise.reading import read_json

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedModel, PreTrainedTokenizerBase, WhisperProcessor

M = TypeVar("M", bound=nn.Module)
# Whisper's table of British and American spellings, which its English normaliser reads
_SPELLINGS = Archive(
    package="whisper-normalizer",
    version="0.1.15",
    sha256="2871b3c56557628dc30749bf3ffac7bc4ac3d3f497b0b24df27d0c4c434e113f",
)
_POSITIONS = ("position_embeddings", "position_embedding", "wpe", "embed_positions")  # tables with a row a position


def resolve(name_or_path: str) -> str:
    """What `transformers` can load: the cached folder of a bundled model, a folder, or the hub id as given.

    Raises
    ------
    ValueError
        Neither a bundled name, nor a folder with a ``config.json``, nor of the form ``owner/model``.

    Examples
    --------
    >>> from rankwise.models import resolve
    >>> resolve("owner/model")  # a hub id stays as it is
    'owner/model'
    >>> resolve("smolm2")
    Traceback (most recent call last):
    ValueError: ...smollm2...
    """
    if name_or_path in BUNDLED:
        bundled = BUNDLED[name_or_path]
        if bundled.archive is None:
            return str(TRAINED / name_or_path)
        folder = members(bundled.archive, bundled.files, folder=f"models/{kept_as(name_or_path)}")
        if (folder / "model.bin").is_file():
            return str(_whisper(folder))
        gguf = next(folder.glob("*.gguf"), None)
        return str(folder if gguf is None else _dequantised(folder, gguf.name))
    return located(name_or_path)


def load(
    name_or_path: str,
    *,
    task: Task | None = None,
    num_labels: int | None = None,
    dropout: float | None = None,
    dtype: torch.dtype | None = torch.float32,
) -> PreTrainedModel:
    """A pretrained model ready for a task.

    Parameters
    ----------
    name_or_path : str
        ``minilm``, ``smollm2``, ``whisper-tiny.en``, a folder that `transformers` or `rankwise.compression` wrote, or a
        hub id.
    task : {"classification", "causal-lm", "asr", "image-classification", "zero-shot-image", "base"}, optional
        Which head; by default a bundled model's own, ``asr`` for a speech recogniser, ``image-classification`` for an
        image classifier, ``zero-shot-image`` for a CLIP (images and words side by side), ``base`` (none) for others.
    num_labels : int, optional
        Outputs of the classification head: for text 2 by default, and 1 means regression; for images those of the
        checkpoint by default, and another number makes a new head.
    dropout : float, optional
        Replaces every dropout probability of the model's configuration; its own by default.
    dtype : torch.dtype, optional
        The dtype of the weights; ``None`` keeps that of the checkpoint.

    Raises
    ------
    ValueError
        Unknown name, unknown task, one the model is not made for (as an encoder for ``causal-lm``), or weights that
        cannot be read (the file is named).
    OSError
        A hub id that cannot be fetched.

    Examples
    --------
    >>> import tempfile
    >>> from transformers import BertConfig, BertModel
    >>> from rankwise.models import load
    >>> config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    >>> with tempfile.TemporaryDirectory() as folder:  # or load("minilm"), load("smollm2"), load("owner/model")
    ...     BertModel(config).save_pretrained(folder)
    ...     model = load(folder, task="classification", num_labels=3)
    >>> type(model).__name__, model.classifier.out_features
    ('BertForSequenceClassification', 3)
    """
    import transformers

    kinds = {
        "classification": transformers.AutoModelForSequenceClassification,
        "causal-lm": transformers.AutoModelForCausalLM,
        "asr": transformers.AutoModelForSpeechSeq2Seq,
        "image-classification": transformers.AutoModelForImageClassification,
        "zero-shot-image": transformers.AutoModelForZeroShotImageClassification,
        "base": transformers.AutoModel,
    }
    if task is not None and task not in kinds:
        raise unknown("task", task, kinds)
    folder = resolve(name_or_path)
    config = pretrained(transformers.AutoConfig, folder)
    if task is None:
        made_for = str(next(iter(config.architectures or ()), ""))
        task = BUNDLED[name_or_path].task if name_or_path in BUNDLED else own_task(config.model_type, made_for)
    check_task(name_or_path, config.model_type, task)
    new_head = task == "classification" or (task == "image-classification" and num_labels is not None)
    if task == "classification":
        config.num_labels = 2 if num_labels is None else num_labels
        config.problem_type = "regression" if num_labels == 1 else "single_label_classification"
    elif new_head and num_labels != config.num_labels:  # the setter forgets the names of the classes
        config.num_labels = num_labels
    if dropout is not None:
        _set_dropout(config, dropout)
    with quiet_loading():
        # a saved head of another size is replaced by a new one
        fresh_head = {"ignore_mismatched_sizes": True} if new_head else {}
        options: dict[str, Any] = {"dtype": "auto" if dtype is None else dtype, **fresh_head}
        if task == "causal-lm":
            model = _causal(kinds[task], name_or_path, folder, config, **options)
        else:
            loaded = _from_pretrained(kinds[task], folder, config, **options)
            model = _filled(loaded, folder, head=new_head)
    if task == "classification" and config.pad_token_id is None:
        model.config.pad_token_id = load_tokenizer(name_or_path).pad_token_id
    return model


def placed(model: M) -> M:
    """The model where commands compute: on the GPU, where torch sees one, else where it is.

    Examples
    --------
    >>> import torch
    >>> from rankwise.models.loading import placed
    >>> placed(torch.nn.Linear(2, 3)).weight.is_cuda == torch.cuda.is_available()
    True
    """
    return model.to("cuda") if torch.cuda.is_available() else model


def load_as_saved(path: str, *, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """A checkpoint as the class that its ``config.json`` names, with the settings it has there.

    Parameters
    ----------
    path : str
        A folder that ``save_pretrained`` wrote, or a hub id.
    dtype : torch.dtype, optional
        The saved one by default.

    Raises
    ------
    ValueError
        No class of `transformers` is named, or the weights do not fill it (but for a pooler, as in `load`).

    Examples
    --------
    >>> import tempfile
    >>> from transformers import BertConfig, BertForMaskedLM
    >>> from rankwise.models.loading import load_as_saved
    >>> config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     BertForMaskedLM(config).save_pretrained(folder)
    ...     model = load_as_saved(folder)
    >>> type(model).__name__
    'BertForMaskedLM'
    """
    import transformers

    folder = resolve(path)
    config = pretrained(transformers.AutoConfig, folder)
    named = str(next(iter(config.architectures or ()), ""))
    cls: Any = getattr(transformers, named, None) if named.isidentifier() else None
    of_transformers = isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)
    if not of_transformers or not isinstance(config, cls.config_class or ()):
        raise ValueError(
            f"{path} holds a {named or 'model without a class'}, which is no {config.model_type} of transformers"
        )
    saved = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    with quiet_loading():
        return _filled(_of_class(cls, folder, config, auto=cls, dtype=dtype or saved), folder, head=False)


def _set_dropout(config: Any, dropout: float) -> None:
    """Every dropout probability of a configuration, and of those inside it, becomes ``dropout``."""
    for part in (config, *(getattr(config, name) for name in config.sub_configs)):
        for field in [f for f in part.to_dict() if f.endswith(("dropout", "dropout_prob", "pdrop"))]:
            setattr(part, field, dropout)


def _causal(auto: Any, name: str, folder: str, config: Any, **options: Any) -> PreTrainedModel:
    """A language model with the head that its checkpoint has; an error where that would be random, or reads ahead."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    made_for = str(next(iter(config.architectures or ()), ""))
    wanted = f"{name} holds a {made_for or config.model_type}: a causal language model is needed, such as smollm2"
    if "For" in made_for and made_for not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        raise ValueError(wanted)
    model, missing = _from_pretrained(auto, folder, config, **options)
    if missing:
        raise ValueError(f"{wanted} (its weights lack {missing[0]}, which would be random)")
    return model


def _from_pretrained(auto: Any, folder: str, config: Any, **options: Any) -> tuple[PreTrainedModel, list[str]]:
    """What ``auto.from_pretrained`` gives, and of a checkpoint with factorised layers the model that has them.

    Also the names of its tensors that the checkpoint has not, or in another shape: they are random.
    """
    mapping = auto._model_mapping
    if type(config) not in mapping:
        raise ValueError(f"{folder} is a {config.model_type} model, of which transformers has no {auto.__name__}")
    cls = mapping[type(config)]
    if isinstance(cls, tuple):  # several heads of one model, as DeiT's with and without a teacher
        cls = next((c for c in cls if c.__name__ in (config.architectures or ())), cls[0])
    return _of_class(cls, folder, config, auto=auto, **options)


def _of_class(cls: Any, folder: str, config: Any, *, auto: Any, **options: Any) -> tuple[PreTrainedModel, list[str]]:
    """As `_from_pretrained`, of a class; ``auto`` is what reads a checkpoint without factorised layers."""
    record = record_of(config)
    built = cls if record is None else compressed_class(cls, record)
    if Path(folder).is_dir():
        with _one_line(folder, f"a {cls.__name__}"):
            check_size(built, config, Path(folder))
    options |= {"config": config, "use_safetensors": True, "output_loading_info": True}
    model, found = pretrained(auto if record is None else built, folder, **options)
    if record is not None:
        model.__class__ = cls
        for layer in low_rank_layers(model).values():
            layer.marked = True
    return model, sorted([*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])])


def _filled(loaded: tuple[PreTrainedModel, list[str]], folder: str, *, head: bool) -> PreTrainedModel:
    """The model, refused where it would be random in more than its pooler and, where allowed, its ``head``."""
    model, missing = loaded
    base = f"{model.base_model_prefix}."
    inside = any(n.startswith(base) for n in model.state_dict())  # a CLIP's towers lie beside its head
    absent = [
        n
        for n in missing
        if "pooler" not in n and not (head and (not n.startswith(base) if inside else n.startswith("classifier.")))
    ]
    if absent:
        more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
        raise ValueError(
            f"the weights in {folder} do not fill a {type(model).__name__} of its config.json: "
            f"{', '.join(absent[:3])}{more} are absent or of another shape"
        )
    return model


def pretrained(cls: Any, folder: str | Path, **options: Any) -> Any:
    """``cls.from_pretrained``, which never runs code that lies beside a model, nor asks whether it may.

    Raises
    ------
    ValueError
        The model needs code of its own, its configuration asks for more than its weights hold, they are pickled, or a
        file cannot be read: one line that names the folder.
    """
    if Path(folder).is_dir():
        check_model_folder(Path(folder))
    auto = {"trust_remote_code": False} if cls.__name__.startswith("Auto") else {}
    with _one_line(folder, f"a {cls.__name__.removeprefix('Auto')}"):
        return cls.from_pretrained(folder, **auto, **options)


@contextmanager
def _one_line(folder: str | Path, what: str) -> Iterator[None]:
    """Whatever a library says of a broken file becomes one `ValueError` that names the folder."""
    try:
        yield
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise ValueError(
                f"{folder} brings code of its own, which rankwise never runs; use a model whose architecture is part "
                "of transformers, or load it yourself and pass the object"
            ) from error
        said = " ".join(str(error).split())[:300] or type(error).__name__
        if isinstance(error, OSError) and error.errno is None and not Path(folder).is_dir():  # of the hub's library
            raise OSError(f"{folder} is no folder here and cannot be fetched from the hub: {said}") from error
        if isinstance(error, OSError) or (isinstance(error, ValueError) and str(folder) in said):
            raise
        if "safetensor" in type(error).__name__.lower() or "header" in said.lower():
            raise ValueError(f"the weights in {folder} cannot be read: {said}. Is the file whole?") from error
        raise ValueError(f"{folder} cannot be read as {what}: {said}") from error


def most_tokens(model: torch.nn.Module) -> int | None:
    """Tokens of the longest text for which a model has positions; ``None`` where they are worked out for any."""
    for name, table in model.named_modules():
        if name.rpartition(".")[2] in _POSITIONS and isinstance(table, torch.nn.Embedding):
            before = getattr(table, "offset", 0) or (0 if table.padding_idx is None else table.padding_idx + 1)
            return table.num_embeddings - before
    return None


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """The model's tokenizer, or an adapter folder's own, with a padding token (end of text where it has none).

    Examples
    --------
    >>> import tempfile
    >>> from transformers import BertTokenizer
    >>> from rankwise.models import load_tokenizer
    >>> words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "film", "fine"])}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = BertTokenizer(vocab=words).save_pretrained(folder)
    ...     tokenizer = load_tokenizer(folder)
    >>> tokenizer("a fine film")["input_ids"]
    [2, 5, 7, 6, 3]
    """
    import transformers

    tokenizer = pretrained(transformers.AutoTokenizer, _tokenizer_folder(name_or_path))
    if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):  # made up by transformers, without a word
        raise ValueError(f"{name_or_path} has no tokenizer: save the model's own beside it (tokenizer.save_pretrained)")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_processor(name_or_path: str) -> WhisperProcessor:
    """A Whisper's feature extractor and tokenizer, with a padding token and the normaliser's spellings.

    Examples
    --------
    >>> from rankwise.models import load_processor
    >>> load_processor("whisper-tiny")  # load_processor("whisper-tiny.en") is that of the bundled Whisper
    Traceback (most recent call last):
    ValueError: ...whisper-tiny.en...
    """
    from transformers import WhisperProcessor

    processor = pretrained(WhisperProcessor, _tokenizer_folder(name_or_path))
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    if processor.tokenizer.english_spelling_normalizer is None:
        spellings = members(_SPELLINGS, ["whisper_normalizer/normalizers/english.json"], folder="data/spellings-0.1.15")
        processor.tokenizer.english_spelling_normalizer = read_json(spellings / "english.json")
    return processor


def load_image_processor(name_or_path: str) -> BaseImageProcessor:
    """What turns images into a model's ``pixel_values``: size, cut, mean and deviation as in its checkpoint.

    Images are resized by Pillow whether or not torchvision is installed, so that the numbers are the same everywhere.

    Raises
    ------
    ValueError
        A model that does not see images, or whose folder has no ``preprocessor_config.json``.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil
    >>> from rankwise.models import load_image_processor
    >>> config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     ViTForImageClassification(config).save_pretrained(folder)
    ...     _ = ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    ...     processor = load_image_processor(folder)
    >>> processor(Image.new("RGB", (40, 20)), return_tensors="pt")["pixel_values"].shape
    torch.Size([1, 3, 32, 32])
    """
    import transformers

    folder = resolve(name_or_path)
    kept = ("preprocessor_config.json", "processor_config.json")
    if Path(folder).is_dir() and not any((Path(folder) / name).is_file() for name in kept):
        raise ValueError(f"{folder} has no {kept[0]}: how its images are prepared is not known")
    return pretrained(transformers.AutoImageProcessor, folder, backend="pil")


def _tokenizer_folder(name_or_path: str) -> str:
    """A folder that holds a tokenizer, with or without a model; else as `resolve`."""
    folder = Path(name_or_path).expanduser()
    return str(folder) if (folder / "tokenizer_config.json").is_file() else resolve(name_or_path)


def _whisper(folder: Path) -> Path:
    """The CTranslate2 model as a `transformers` folder beside it, written once."""

    def written(draft: Path) -> None:
        from transformers import WhisperFeatureExtractor, WhisperProcessor, WhisperTokenizer

        from rankwise.models.ctranslate2 import whisper_model

        with quiet_loading():
            model = whisper_model(folder)
            model.save_pretrained(draft)
            extractor = WhisperFeatureExtractor(feature_size=model.config.num_mel_bins)
            WhisperProcessor(extractor, WhisperTokenizer.from_pretrained(folder)).save_pretrained(draft)

    return cached(cache_folder() / "models" / f"{folder.name}-safetensors", written)


def _dequantised(folder: Path, gguf: str) -> Path:
    """The GGUF model as a safetensors folder beside it, written once."""

    def written(draft: Path) -> None:
        import transformers

        given: dict[str, Any] = {"gguf_file": gguf, "trust_remote_code": False}
        try:
            with quiet_loading(), _one_line(folder, "a GGUF model"):
                model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **given)
                vars(model)["hf_quantizer"] = None  # the weights are dense now
                vars(model.config).pop("quantization_config", None)
                model.bfloat16().save_pretrained(draft)
                transformers.AutoTokenizer.from_pretrained(folder, **given).save_pretrained(draft)
        except ImportError as error:
            raise ImportError("smollm2 is read from GGUF: pip install 'rankwise[models]'") from error

    return cached(cache_folder() / "models" / f"{folder.name}-safetensors", written)


class quiet_loading:
    """Silence transformers' loading report (a fresh head is expected here) and its progress bar.

    Examples
    --------
    >>> import tempfile
    >>> from transformers import AutoModelForSequenceClassification, BertConfig, BertModel
    >>> from rankwise.models.loading import quiet_loading
    >>> config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    >>> with tempfile.TemporaryDirectory() as folder, quiet_loading():  # no report of the new head
    ...     BertModel(config).save_pretrained(folder)
    ...     model = AutoModelForSequenceClassification.from_pretrained(folder)
    >>> model.num_labels
    2
    """

    def __enter__(self) -> None:
        from transformers.utils import logging

        self.level, self.bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()

    def __exit__(self, *exc: object) -> None:
        from transformers.utils import logging

        logging.set_verbosity(self.level)
        if self.bars:
            logging.enable_progress_bar()
