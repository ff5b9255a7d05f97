"""O3: a deployed language model forgets request after request, without its old data, and can be told to know again.

Each request trains one low-rank block on *other* answers to its prompts, with rows orthogonal to those of earlier
blocks, and a detector that knows its own texts from others. The detector decides, prompt by prompt, how far the block
acts; a prompt that no detector knows gets the plain model, bit for bit:

    y = W x + Σ_t w_t(prompt) · s · B_t A_t x,     A_t: (rank, in), B_t: (out, rank)
    loss_t = CE(other answers) + 0.1 Σ_{s<t} Σ_layers ‖A_s A_tᵀ‖_F²
    w_t = soft(sigmoid(10 p_t - 2)),    p_t = 1 - |F_t(g_t) - F_t(2x₀ - g_t)|,    g_t from all layers of an encoder

Source: Gao, Wang, Ding, Weng, Wang & Zhu, "On Large Language Model Continual Unlearning", ICLR 2025, arXiv 2407.10223.

What people get wrong: nothing is erased. The weights still hold what was learned, and whoever has the model without
the router has it all; the router itself tells which requests there are. It is a way of *serving* a model that has
forgotten, at once and reversibly, until it can be trained anew.

The released code has one adapter for all requests, scaled by the largest weight (``adapter="shared"``), which cannot
give back a single request; its router has a hole and is two-sided; its random answers may be the true ones.
`UnlearningSettings.released` has all of that.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rankwise.continual.accepted import refuse_adapters
from rankwise.continual.training import draw, rows_of, train
from rankwise.continual.unlearning import measuring, state
from rankwise.continual.unlearning.blocks import Factors, acting, fresh, overlap, shape_of
from rankwise.continual.unlearning.detector import LEAST, Detector, most_bytes
from rankwise.continual.unlearning.features import MOST_UNKNOWN, LayerEncoder, check_texts
from rankwise.continual.unlearning.measuring import GENERAL, known, token_losses
from rankwise.continual.unlearning.names import MADE_BY, check_name
from rankwise.continual.unlearning.router import ROUTERS, Array, auroc, switch
from rankwise.continual.unlearning.rows import Row, Writer, content_of_rows, instead, rows_from
from rankwise.continual.unlearning.settings import UnlearningSettings
from rankwise.continual.unlearning.state import Request, State
from rankwise.continual.unlearning.views import tuned
from rankwise.files import fingerprint, whole_folder
from rankwise.models import linear_layers, target_modules
from rankwise.models.passes import evaluating
from rankwise.nearest import unknown

__all__ = ["O3Unlearner"]

SHARE = 0.01  # of the model's bytes that a request may hold
RANK = 8
OF_A_BATCH = (
    "inputs", "input_ids", "inputs_embeds", "attention_mask", "position_ids", "past_key_values", "generation_config",
    "max_length", "return_dict_in_generate",
)  # fmt: skip
SEPARATE = 0.9  # AUROC of a request's own texts against general ones below which it is said


class O3Unlearner:
    """Forgets requests one after another, and any of them can be taken back.

    Parameters
    ----------
    model : PreTrainedModel
        A causal language model without adapters, on any device; its weights are never changed.
    tokenizer : PreTrainedTokenizerBase
        The model's.
    settings : UnlearningSettings, optional
        The defaults by default.
    encoder : str or LayerEncoder
        Of the detectors: ``minilm``, a folder or a hub id.
    measured : mapping, optional
        By name, rows with question and answer whose knowledge is measured before and after every request: what is
        retained, earlier requests, other texts of the same kind. ``utility`` is twenty general facts by default.

    Attributes
    ----------
    log : list of dict
        What was asked when, of which data by hash, and what came of it. It never holds the texts.

    Raises
    ------
    ValueError
        A model with adapters, a tokenizer without the template that the style needs, nothing to put blocks on.

    Examples
    --------
    >>> from rankwise.continual import O3Unlearner, Schedule, UnlearningSettings
    >>> from rankwise.models import load, load_tokenizer
    >>> rows = [{"question": f"Who lives in house {n} of Elm Road?", "answer": "A dentist."} for n in range(1, 21)]
    >>> quick = UnlearningSettings(schedule=Schedule(steps=1, batch_size=4))  # 100 steps by default
    >>> unlearner = O3Unlearner(load("smollm2"), load_tokenizer("smollm2"), settings=quick)
    >>> done = unlearner.forget(rows, name="elm-road")
    >>> done["rows"], done["share"] < 0.01, done["scores"]["utility"]["after"]["switched"]
    (20, True, 0.0)
    >>> unlearner.weights(["Who lives in house 7 of Elm Road?", "What is the capital of France?"]).round(1).tolist()
    [[1.0], [0.0]]
    >>> again = unlearner.relearn("elm-road")
    >>> unlearner.requests
    []
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        settings: UnlearningSettings | None = None,
        encoder: str | LayerEncoder = "minilm",
        measured: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    ) -> None:
        refuse_adapters(model)
        if getattr(model.config, "is_encoder_decoder", False) or not model.can_generate():
            raise ValueError(f"{type(model).__name__} is no causal language model, which is needed")
        self.model, self.tokenizer, self.settings = model, tokenizer, settings or UnlearningSettings()
        chosen, linears = target_modules(model, self.settings.target), linear_layers(model)
        self.layers: dict[str, nn.Module] = {name: linears[name] for name in chosen}
        self.writer = Writer(tokenizer, style=self.settings.style, max_length=self.settings.max_length)
        self.encoder = encoder if isinstance(encoder, LayerEncoder) else LayerEncoder(encoder)
        self.encoder.to(self.device)
        self.measured = {n: rows_from(rows, n) for n, rows in (measured or {}).items()}
        self.measured.setdefault("utility", list(GENERAL))
        self._requests: list[Request] = []
        self.log: list[dict[str, Any]] = []
        self.number = 0  # of requests that there ever were

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return next(self.model.parameters()).device

    @property
    def requests(self) -> list[str]:
        """Names of what is forgotten now, in order."""
        return [r.name for r in self._requests]

    # --- forgetting

    def forget(
        self,
        dataset: Sequence[Mapping[str, Any]],
        *,
        name: str,
        checkpoint: str | Path | None = None,
        every: int = 50,
        on_step: Callable[[int, float], None] = lambda step, loss: None,
    ) -> dict[str, Any]:
        """Forget a request; what the log says of it.

        Parameters
        ----------
        dataset : sequence of mappings
            Rows with ``question`` and ``answer`` (or ``prompt`` and ``completion``), and ``choices`` where other
            answers are to be drawn from them.
        name : str
            By which it can be taken back.
        checkpoint : path, optional
            A file for the state of the training: the same call, cut short, goes on from it to the same numbers.
        every : int
            Steps between two writings of it.
        on_step : callable
            Told each step and its loss.

        Raises
        ------
        ValueError
            No rows, fewer than ten different prompts, a name that is taken or empty, rows without question and answer.
        FloatingPointError
            A loss that is not finite; nothing is changed then.
        """
        check_name(name)
        if name in self.requests:
            raise ValueError(f"'{name}' is forgotten already: give another name, or relearn('{name}') first")
        rows = rows_from(dataset, name)
        prompts = list(dict.fromkeys(r.prompt for r in rows))
        if len(prompts) < LEAST:
            raise ValueError(f"'{name}' has {len(prompts)} different prompts: its detector needs at least {LEAST}")
        seed = draw(self.settings.seed, self.number)
        wanted = instead(rows, self.settings.answers, self.settings.refusals, seed=seed)
        before = self.measure(rows)
        own, detector = self._detector(prompts, name, seed)
        factors, losses = self._trained(wanted, seed, checkpoint, every, on_step)
        request = Request(
            name=name, number=self.number, data=content_of_rows(rows), rows=len(rows), losses=losses, factors=factors,
            detector=detector, encoder=own, texts=rows if self.settings.keep_texts else None,
        )  # fmt: skip
        separate = self._separation(request, prompts)
        self._requests.append(request)
        self.number += 1
        if checkpoint is not None:
            Path(checkpoint).unlink(missing_ok=True)
        entry = {"data": request.data, "rows": len(rows), "separation": separate, "share": self.share(request)}
        return self._noted("forget", name, entry, before, self.measure(rows))

    def relearn(self, name: str) -> dict[str, Any]:
        """Take a request back: the model answers as if it had never been; what the log says of it.

        Raises
        ------
        ValueError
            No such request; one in the middle of a shared adapter, on which later ones were trained.
        """
        at = self._position(name)
        rows = self._requests[at].texts
        before = self.measure(rows)
        self._requests = state.without(self._requests, at, shared=self.settings.adapter == "shared")
        return self._noted("relearn", name, {}, before, self.measure(rows))

    def _position(self, name: str) -> int:
        if name not in self.requests:
            raise unknown("request", name, self.requests or ["none: nothing is forgotten"])
        return self.requests.index(name)

    def _noted(self, what: str, name: str, entry: dict, before: dict, after: dict) -> dict[str, Any]:
        scores = {key: {"before": before[key], "after": after[key]} for key in after if key in before}
        when = datetime.now(UTC).isoformat(timespec="seconds")
        self.log.append({"what": what, "name": name, "when": when, **entry, "scores": scores})
        return self.log[-1]

    def _detector(self, prompts: list[str], name: str, seed: int) -> tuple[Factors | None, Detector]:
        s = self.settings
        if (share := self.encoder.unknown_share(prompts)) > MOST_UNKNOWN:
            warnings.warn(
                f"'{name}': {share:.0%} of the tokens are unknown to {self.encoder}: a detector sees little of them",
                stacklevel=3,
            )
        own = None
        if s.encoder_steps:
            own = tuned(self.encoder, prompts, steps=s.encoder_steps, learning_rate=s.encoder_rate, seed=seed)
        states, _ = self.encoder(prompts, own)
        return own, Detector.fit(states, score=s.score, nu=s.nu, seed=seed)

    def _separation(self, request: Request, prompts: list[str]) -> float:
        """AUROC of the request's texts against general ones; said where it is low."""
        inside, outside = (self._likeness(texts, [request])[:, 0] for texts in (prompts, [r.prompt for r in GENERAL]))
        found = auroc(inside, outside)
        if found < SEPARATE:
            warnings.warn(
                f"'{request.name}' can hardly be told from general texts (AUROC {found:.2f}): what is forgotten with "
                "it may be more than was asked; a request of one kind of texts is told best",
                stacklevel=3,
            )
        return found

    def _trained(
        self, wanted: list[Row], seed: int, checkpoint: str | Path | None, every: int, on_step: Callable
    ) -> tuple[Factors, list[float]]:
        s, earlier = self.settings, [r.factors for r in self._requests]
        apart = earlier if s.orthogonal else []
        shared = s.adapter == "shared" and bool(earlier)
        start = earlier[-1] if shared else fresh(self.layers, self.rank, apart, seed=seed)
        block = {n: (_trainable(A, self.device), _trainable(B, self.device)) for n, (A, B) in start.items()}

        def loss(step: int) -> Tensor:
            rows = [wanted[i] for i in rows_of(step, len(wanted), s.schedule.batch_size, seed)]
            with acting(self.layers, [block], torch.ones(1, 1), scaling=s.scaling, dropout=s.dropout):
                losses, _, mask = token_losses(self.model, self.writer.batch(rows, whole=s.learn_prompts))
            return losses.sum() / mask.sum() + (s.orthogonal * overlap(block, apart) if apart else 0.0)

        told, path = "", None if checkpoint is None else Path(checkpoint)
        if path is not None:
            before = [[r.name, r.data, r.losses[-1]] for r in self._requests]
            told = fingerprint([state.said(s), content_of_rows(wanted), seed, before, self.identity])
        parameters = {f"{n}|{i}": p for n, pair in block.items() for i, p in enumerate(pair)}
        with _frozen(self.model), evaluating(self.model):  # of dropouts the block's alone
            losses = train(parameters, loss, s.schedule, seed, on_step=on_step, checkpoint=path, every=every, told=told)
        dtype = next(self.model.parameters()).dtype
        return {n: (A.detach().to(dtype), B.detach().to(dtype)) for n, (A, B) in block.items()}, losses

    @property
    def rank(self) -> int:
        """Of a new block."""
        if self.settings.rank is not None:
            return self.settings.rank
        config, first = self.encoder.model.config, next(self.model.parameters())
        each = first.element_size() * sum(sum(shape_of(layer)) for layer in self.layers.values())
        left = SHARE * self._bytes - most_bytes(config.num_hidden_layers, config.hidden_size)
        return int(min(RANK, max(1, left // each)))

    @property
    def _bytes(self) -> int:
        return sum(p.numel() * p.element_size() for p in self.model.parameters())

    # --- serving

    def weights(self, texts: Sequence[str]) -> Array:
        """How far each request acts on each prompt: ``(texts, requests)``, 0 where the model stays as it is."""
        w = switch(self.likeness(texts))
        s = self.settings
        return ROUTERS[s.router](w, low=s.low, high=s.high, top=s.top)

    def likeness(self, texts: Sequence[str]) -> Array:
        """``p`` of each prompt for each request, in [0, 1]: of a long text the part that is most like it."""
        return self._likeness(texts, self._requests)

    def _likeness(self, texts: Sequence[str], requests: Sequence[Request]) -> Array:
        check_texts(texts)
        out = np.zeros((len(texts), len(requests)))
        common: Any = None  # states that all requests without an encoder of their own share
        for i, request in enumerate(requests):
            if request.encoder is None:
                common = common if common is not None else self.encoder(texts)
            states, text = common if request.encoder is None else self.encoder(texts, request.encoder)
            p = request.detector.calibration.likeness(
                request.detector.scores(states), two_sided=self.settings.two_sided
            )
            np.maximum.at(out[:, i], text, p)
        return out

    @contextmanager
    def acting(self, weights: Array) -> Iterator[None]:
        """Within, the model is one that has forgotten: ``weights`` are those of each row of a batch, or one row."""
        given = torch.as_tensor(np.asarray(weights), dtype=torch.float32)
        if given.dim() != 2 or given.shape[1] != len(self._requests):
            raise ValueError(f"weights are {tuple(given.shape)}: (rows, {len(self._requests)} requests) is needed")
        blocks = [r.factors for r in self._requests]
        if self.settings.combined == "max" and blocks:
            blocks = blocks[-1:] if self.settings.adapter == "shared" else blocks
            given = given.amax(1, keepdim=True).expand(-1, len(blocks))
        with acting(self.layers, blocks, given, scaling=self.settings.scaling):
            yield

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[str], *, max_new_tokens: int = 128, batch_size: int = 16, **options: Any
    ) -> list[str]:
        """An answer to each prompt.

        Prompts that no request knows are answered by the plain model, apart from the others.

        Parameters
        ----------
        prompts : sequence of str
            As the user gave them, of any length that the model reads; the chat template comes here.
        max_new_tokens : int
            Tokens of an answer at most.
        batch_size : int
            Prompts at once.
        **options
            As ``model.generate`` takes them one by one; greedy by default. What is of one batch alone (ids, a cache)
            belongs into a call of ``model.generate`` within ``acting``.

        Raises
        ------
        ValueError
            Several answers a prompt; one text in place of a list; an option of one batch; a prompt that leaves the
            model no room for ``max_new_tokens``.
        """
        if options.get("num_return_sequences", 1) != 1:
            raise ValueError("one answer a prompt: leave num_return_sequences out, and give a prompt several times")
        if strange := [name for name in options if name in OF_A_BATCH]:
            raise ValueError(
                f"{strange[0]} is not taken here, where prompts are answered in batches as texts: give options of "
                "model.generate one by one, or call that within unlearner.acting(unlearner.weights(prompts))"
            )
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}; at least 1")
        prompts, weights = [*prompts], self.weights(prompts)
        self._check_room(prompts, max_new_tokens)
        out, plain = [""] * len(prompts), ~weights.any(1)
        options = {"do_sample": False, "max_new_tokens": max_new_tokens, "pad_token_id": self.writer.padding} | options
        with evaluating(self.model):
            for rows in (np.flatnonzero(plain), np.flatnonzero(~plain)):
                for at in np.split(rows, range(batch_size, len(rows), batch_size)):
                    if not len(at):
                        continue
                    asked = {k: v.to(self.device) for k, v in self.writer.asked([prompts[int(i)] for i in at]).items()}
                    with self.acting(weights[at]):
                        said = self.model.generate(**asked, **options)[:, asked["input_ids"].shape[1] :]
                    for i, text in zip(at, self.tokenizer.batch_decode(said, skip_special_tokens=True), strict=True):
                        out[i] = text.strip()
        return out

    def _check_room(self, prompts: Sequence[str], new: int) -> None:
        most = getattr(self.model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        for prompt in prompts:
            own = self.writer.asked([prompt])["input_ids"].shape[1]
            if most is not None and own + new > most:
                raise ValueError(
                    f"prompt {prompt[:40]!r} has {own} tokens, and with {new} new ones more than the {most} that the "
                    f"model reads: {f'max_new_tokens={most - own} would fit' if own < most else 'shorten it'}"
                )

    # --- what came of it

    def known(
        self, dataset: Sequence[Mapping[str, Any]], *, plain: bool = False, style: str | None = None
    ) -> measuring.Known:
        """How well answers are known, row by row: by the model that has forgotten, or by the ``plain`` one."""
        rows, writer = rows_from(dataset, "rows"), self.writer
        if style is not None:
            writer = Writer(self.tokenizer, style=style, max_length=self.settings.max_length)
        if plain:
            return known(self.model, writer, rows)
        return known(self.model, writer, rows, around=lambda part: self.acting(self.weights([r.prompt for r in part])))

    def measure(self, rows: Sequence[Row] | None = None) -> dict[str, dict[str, float]]:
        """Of what is measured, and of a request's rows: nats a token, share of right answers, share switched."""
        asked = {f"forgotten: {r.name}": r.texts for r in self._requests if r.texts} | self.measured
        asked |= {} if rows is None else {"request": [*rows]}
        return {name: self._measured(part) for name, part in asked.items()}

    def _measured(self, rows: Any) -> dict[str, float]:
        on = self.weights([r.prompt for r in rows]).any(1)
        found = self.known(rows, style="text" if rows == list(GENERAL) else None)  # these are beginnings of sentences
        return {"nll": float(found.nll.mean()), "right": float(found.right.mean()), "switched": float(on.mean())}

    def share(self, request: Request) -> float:
        """Bytes that a request holds, of the model's."""
        return request.bytes() / self._bytes

    # --- on disk

    @property
    def identity(self) -> str:
        """By which the model is known again: a row of every adapted layer."""
        return state.identity(self.layers)

    def save(self, folder: str | Path, *, model: str = "") -> None:
        """Write all requests: each a stock PEFT adapter, and its detector as arrays; and the log.

        Parameters
        ----------
        folder : path
            Replaced as a whole.
        model : str
            Name by which the model is loaded, to be kept beside them.

        Raises
        ------
        ValueError
            The folder holds something else.
        """
        with whole_folder(Path(folder), made_by=MADE_BY) as draft:
            state.write(draft, self.state(Path(folder), model))

    def state(self, folder: str | Path, model: str = "") -> State:
        """All that is kept in a folder."""
        return State(
            model=model, identity=self.identity, encoder=state.beside(self.encoder.name, Path(folder)),
            encoder_identity=state.identity(self.encoder.layers), settings=self.settings,
            requests=self._requests, log=self.log, number=self.number,
        )  # fmt: skip

    @classmethod
    def load(
        cls, folder: str | Path, model: Any, tokenizer: Any, *, encoder: LayerEncoder | None = None, **options: Any
    ) -> O3Unlearner:
        """An unlearner as it was saved.

        Parameters
        ----------
        folder : path
            What `save` wrote.
        model, tokenizer
            Those with which it was saved.
        encoder : LayerEncoder, optional
            Loaded by its name by default.
        **options
            ``measured``.

        Raises
        ------
        ValueError
            No such state, another model, files that do not belong together.
        """
        kept = state.read(Path(folder))
        encoder = encoder or LayerEncoder(state.found(kept.encoder, Path(folder)))
        return cls.of(kept, model, tokenizer, encoder=encoder, source=str(folder), **options)

    @classmethod
    def of(
        cls, kept: State, model: Any, tokenizer: Any, *, encoder: LayerEncoder, source: str = "the state",
        **options: Any,
    ) -> O3Unlearner:  # fmt: skip
        """An unlearner with a state that was read already."""
        out = cls(model, tokenizer, settings=kept.settings, encoder=encoder, **options)
        if out.identity != kept.identity:
            raise ValueError(f"{source}: these requests were forgotten by another model, or by other weights")
        if kept.encoder_identity not in ("", state.identity(encoder.layers)):  # an earlier version kept none
            raise ValueError(f"{source}: its detectors read another encoder than {encoder}, or other weights")
        config, first = out.encoder.model.config, next(model.parameters())
        for r in kept.requests:
            r.check(out.layers, config.num_hidden_layers, config.hidden_size, source)
            factors = {n: (A.to(first), B.to(first)) for n, (A, B) in r.factors.items()}
            out._requests.append(replace(r, factors=factors))
        out.log, out.number = kept.log, kept.number
        return out


def _trainable(factor: Tensor, device: torch.device) -> Any:
    return nn.Parameter(factor.to(device, torch.float32, copy=True))


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No weight of the model gathers a gradient."""
    trained = [p for p in model.parameters() if p.requires_grad]
    try:
        for p in trained:
            p.requires_grad_(False)
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)
