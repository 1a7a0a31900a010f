"""MaskedDiffusionLM: a Hugging Face backbone made bidirectional, with the masked head.

Everything that reads predictions (loss, reveal scores, sampling) gets hidden states aligned with the
positions they predict from one place, `MaskedDiffusionLM.hidden`, so they cannot disagree about a shift.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from unmask.batch import MaskedBatch, Scores
from unmask.data.checks import check_rows
from unmask.data.stream import columns_of
from unmask.data.streamed import at_hand
from unmask.data.tokenizers import TextTokenizer
from unmask.kinds import kinds_checked
from unmask.models.asked import AnswersTrainers
from unmask.models.attention import PADDING
from unmask.models.families import (
    auto_class,
    check_no_run,
    longest_row,
    make_denoiser,
    quiet,
    run_on_host,
    saved_weights,
    spans,
    text_config,
    unspanned,
)
from unmask.models.head import MaskedHead
from unmask.models.inputs import Inputs, Prepared
from unmask.models.logits import LogitsBackbone, LogitsHead
from unmask.models.lora import check_no_adapters, has_adapters, load_adapters, save_adapters
from unmask.models.output import MaskedOutput
from unmask.models.readout import ReadOut
from unmask.models.verify import find_backbone, freeze_unreached, unfit_layouts, verify
from unmask.objectives import Objective

STREAM_LOOKED_AT = 100
"""Rows of a streamed data set that are looked at before training; the others are as they are read."""


class MaskedDiffusionLM(AnswersTrainers):
    """A denoiser: reads partly masked rows, predicts the masked tokens.

    Args:
        backbone: maps `input_ids` and `attention_mask` [B, L] to an object with `last_hidden_state` [B, L, d]; for
            blocks also `position_ids` and a mask [B, 1, L, L].
        head: a `MaskedHead`, or the linear output layer that one is to be made of.
        mask_token_id: id of the mask token, inside the vocabulary.
        shifted: hidden[i - 1] predicts token i, as in a model initialised from an autoregressive one. Position
            0 then has no predecessor: prepend a BOS, or keep it unmaskable.

    Raises:
        ValueError: for a mask token outside the vocabulary.
    """

    @kinds_checked
    def __init__(
        self, backbone: nn.Module, head: MaskedHead | nn.Module, mask_token_id: int, shifted: bool = False
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head if isinstance(head, MaskedHead) else MaskedHead(head)
        if not 0 <= mask_token_id < self.head.vocab_size:
            raise ValueError(f"mask_token_id {mask_token_id} is outside the vocabulary of {self.head.vocab_size}")
        self.mask_token_id, self.shifted = int(mask_token_id), shifted  # a config.json takes no numpy integer
        # To the backbone: router logits, where the config wants experts to be used evenly.
        self._options: dict[str, Any] = {}
        # Whether a row may be masked as a whole; ESM's rescaling of what is seen has nothing to rescale then.
        self.sees_only_masks = True
        # Layouts that the backbone runs otherwise than they mean, and how that showed.
        self.unfit: dict[str, str] = {}
        # The Hugging Face model that backbone and head are parts of; a tuple keeps it from being registered.
        self._container: tuple[PreTrainedModel, ...] = ()

    @classmethod
    @kinds_checked
    def from_hf(
        cls, model: PreTrainedModel, mask_token_id: int, shifted: bool = False, unused: Sequence[int] = ()
    ) -> MaskedDiffusionLM:
        """Wrap a Hugging Face causal or masked language model; its attention becomes bidirectional.

        What the model does between its backbone and its logits is run by its own forward (`ReadOut`). A few tokens
        are run through both and compared (`unmask.models.verify`), unless the weights have no values yet. Weights
        that no prediction depends on are frozen.

        Args:
            model: of any family.
            mask_token_id: id of the mask token.
            shifted: hidden[i - 1] predicts token i.
            unused: ids of the vocabulary that no token has: rows that fill it up. See `rule_out`.

        Raises:
            ValueError: for a model without output embeddings, one that predicts otherwise than the library's own, or
                one that stays causal or lets padding leak. The message names the family and what differs.
        """
        if not isinstance(model, PreTrainedModel):
            raise ValueError(
                f"{type(model).__name__} is no Hugging Face model: wrap a module that makes logits with "
                "MaskedDiffusionLM.from_logits, a backbone and its output layer with MaskedDiffusionLM(...)"
            )
        output = model.get_output_embeddings()
        if output is None:
            raise ValueError(
                f"{type(model).__name__} has no language-model head; use AutoModelForCausalLM or AutoModelForMaskedLM"
            )
        if not 0 <= mask_token_id < len(output.weight):
            raise ValueError(f"mask_token_id {mask_token_id} is outside the vocabulary of {len(output.weight)}")
        make_denoiser(model, int(mask_token_id))
        with run_on_host(model):
            backbone, example = find_backbone(model, {mask_token_id, *unused})
            denoiser = cls(backbone, MaskedHead(output, ReadOut(model, backbone, example)), mask_token_id, shifted)
            denoiser._container = (model,)
            denoiser.rule_out(unused)
            if getattr(text_config(model.config), "output_router_logits", False):
                denoiser._options = {"output_router_logits": True}
            verify(denoiser)
            denoiser.unfit = unfit_layouts(denoiser)
            freeze_unreached(denoiser)
        model.config.unmask_shifted = shifted
        return denoiser

    @classmethod
    @kinds_checked
    def from_logits(cls, model: nn.Module, mask_token_id: int, attention: bool = True) -> MaskedDiffusionLM:
        """Wrap a module that makes its own logits; weights stay where they are, and keep being the module's.

        Args:
            model: maps tokens [B, L], int64, and attention [B, L], bool (True for real tokens), to logits [B, L, V]:
                those at position i predict token i, and see the tokens on both sides.
            mask_token_id: id of the mask token, below V; what the model gives for it is not read.
            attention: whether the module takes the second argument; without it rows must have no padding.

        Raises:
            ValueError: for a module that does not do so, or a mask token outside the vocabulary.
        """
        backbone = LogitsBackbone(model, attention)
        return cls(backbone, LogitsHead(backbone.vocab_size()), mask_token_id)

    @classmethod
    @kinds_checked
    def from_config(cls, config: PretrainedConfig, mask_token_id: int, shifted: bool = False) -> MaskedDiffusionLM:
        """Make a model with random weights from a Hugging Face config of a causal or masked language model."""
        kind = auto_class(config)
        build = kind._from_config if issubclass(kind, PreTrainedModel) else kind.from_config
        return cls.from_hf(build(config), mask_token_id, shifted)

    @classmethod
    @kinds_checked
    def from_pretrained(cls, folder: str | Path, **options: Any) -> MaskedDiffusionLM:
        """Load a folder that `save_pretrained` wrote. `options` go to Hugging Face's `from_pretrained`.

        Raises:
            ValueError: for a folder that is not there or does not name its mask token.
        """
        check_no_run(folder)
        if not (Path(folder) / "config.json").is_file():
            raise ValueError(f"{folder} is not a model folder: it has no config.json")
        check_no_adapters(folder)
        config = AutoConfig.from_pretrained(folder)
        mask_token_id = getattr(config, "mask_token_id", None)
        if mask_token_id is None:
            raise ValueError(f"{folder}/config.json names no mask_token_id: it was not saved by unmask")
        with quiet():
            model = auto_class(config).from_pretrained(folder, **{"use_safetensors": True, **options})
        unused = unspanned(getattr(config, "unmask_unused", ()))
        return cls.from_hf(model, mask_token_id, getattr(config, "unmask_shifted", False), unused)

    def rule_out(self, unused: Iterable[int]) -> None:
        """Give ids that no token has probability zero, as the mask token has: in loss, scores, sampling, likelihood.

        They add to those that are ruled out already, and a Hugging Face config keeps them (`unmask_unused`).

        Raises:
            ValueError: for an id outside the vocabulary, or the mask token's.
        """
        known = [] if self.head.unused is None else self.head.unused.tolist()
        every = sorted({*known, *map(int, unused)})
        wrong = [i for i in every if not 0 <= i < self.head.vocab_size or i == self.mask_token_id]
        if wrong:
            raise ValueError(
                f"{wrong[0]} cannot be ruled out: it is the mask token or outside the vocabulary of "
                f"{self.head.vocab_size}"
            )
        if every != known:
            self.head.unused = torch.tensor(every, device=self.device)
            if self._container:
                self.hugging_face.config.unmask_unused = spans(every)

    def check_tokenizer(self, tokenizer: TextTokenizer) -> None:
        """Raise ValueError unless the tokenizer belongs to the model; rule out the ids that it has no token for."""
        tokenizer.check_model(self.mask_token_id, self.head.vocab_size)
        self.rule_out(tokenizer.missing(self.head.vocab_size))

    def check_rows(
        self, dataset: Dataset | IterableDataset, first: int = 0, of: str = "the data set"
    ) -> tuple[int, int]:
        """Look through a whole data set before training; see `unmask.data.checks.check_rows`.

        Of one that is streamed the beginning is looked at, and rows may be as short as one token.
        """
        if isinstance(dataset, IterableDataset):
            some = at_hand(dataset, STREAM_LOOKED_AT)
            columns_of(some.column_names)
            return 1, self.check_rows(some, of=of)[1]
        vocabulary = self.mask_token_id, self.head.vocab_size
        found = check_rows(dataset, *vocabulary, self.shifted, self.longest_row, self.head.unused, first=first, of=of)
        if PADDING in self.unfit and found[0] < found[1]:
            why = f"{type(self.backbone).__name__} cannot be used with padding: {self.unfit[PADDING]}"
            raise ValueError(f"{of} has rows of {found[0]} to {found[1]} tokens, and {why}")
        return found

    def save_pretrained(self, folder: str | Path, state: dict[str, Tensor] | None = None) -> None:
        """Write a Hugging Face folder (safetensors and config.json) that opens without this library.

        With LoRA it holds the adapters alone, as peft writes them.

        Args:
            folder: where to.
            state: weights to save instead of the model's own (an average of them, or gathered shards), with
                the names of `state_dict()`.
        """
        container, names = self.hugging_face, self._container_names()
        renamed = None if state is None else {names[name]: tensor for name, tensor in state.items()}
        if self.has_adapters:
            save_adapters(container, folder, renamed)
            return
        with quiet():
            container.save_pretrained(folder, state_dict=renamed)

    def load_weights(self, folder: str | Path) -> dict[str, Tensor]:
        """Read the weights of a folder that `save_pretrained` wrote, with the names of `state_dict()`, bit by bit.

        Where they are of several precisions, all come in one that holds every one of them. With LoRA the folder gives
        the adapters, the model itself the rest.
        """
        model = self._container[0]
        if self.has_adapters:
            theirs = model.state_dict() | load_adapters(model, folder)
        else:
            theirs = saved_weights(model, folder)
        return {name: theirs[there] for name, there in self._container_names().items()}

    @property
    def has_adapters(self) -> bool:
        """Whether `add_lora` was called on it."""
        return self.is_hugging_face and has_adapters(self.hugging_face)

    @property
    def longest_row(self) -> int | None:
        """How many tokens a row may have; None where the model does not say."""
        model = self._container[0] if self._container else self.backbone
        return longest_row(model) if isinstance(model, PreTrainedModel) else None

    def hidden(
        self,
        noisy: Tensor,
        attention: Tensor,
        block: Tensor | None = None,
        clean: Tensor | None = None,
        document: Tensor | None = None,
    ) -> Tensor:
        """[B, L, d] hidden states, aligned: hidden[:, i] predicts position i.

        Args:
            noisy: [B, L] token ids with mask tokens.
            attention: [B, L] bool, real tokens.
            block: [B, L] int64 block of each position, from 0, never decreasing along a row: position i sees its
                own and earlier blocks. None: no blocks.
            clean: [B, L] the same rows without masks: every block is predicted from the *clean* blocks before
                it, and only the masked positions' states mean anything. None: from the blocks as they are in
                `noisy`.
            document: [B, L] int64, of rows of several documents, none of which sees another. None: one each.

        Raises:
            ValueError: where there are blocks or documents, and the backbone cannot be told who sees whom.
        """
        return self._run(Inputs.of(noisy, attention, self.shifted, block, clean, document))[0]

    def _run(self, inputs: Inputs) -> tuple[Tensor, Any]:
        """The states of `hidden`, and what the backbone returned."""
        output = self.backbone(**inputs.arguments(self.backbone, self.unfit), **self._options)
        return inputs.read(output.last_hidden_state), output

    def prepare(self, batch: MaskedBatch, weights: Tensor | None = None) -> Prepared:
        """What `forward` reads of a batch, worked out where the batch lies: on the host nothing has to be waited for.

        Args:
            batch: the rows.
            weights: [B, L], as for `forward`, where the rows are.

        Raises:
            ValueError: for masks that the model cannot predict.
        """
        masked, attention = batch.masked, batch.clean.attention
        document = batch.clean.document
        noisy = batch.noisy(self.mask_token_id)
        self._check_masked(noisy, masked, attention, document)
        document = None if document is None else document.to(noisy.device)
        inputs = Inputs.of(noisy, attention, self.shifted, batch.block, batch.clean.tokens, document)
        place = masked.flatten().nonzero()[:, 0]
        if weights is None:
            weight = torch.full((len(place),), 1 / max(1, len(place)), device=masked.device)
        else:
            weight = weights.to(masked.device).flatten()[place]
        return Prepared(batch, inputs, place, batch.clean.tokens.flatten()[place], weight)

    def forward(
        self,
        batch: MaskedBatch | Prepared,
        weights: Tensor | None = None,
        needs: tuple[str, ...] | None = None,
        objective: Objective | None = None,
    ) -> MaskedOutput:
        """Loss, per-token nll and scores of a masked batch, in one pass.

        Args:
            batch: the rows, on any device; only masked positions are predicted. Or what `prepare` made of them.
            weights: [B, L] weight of each token's nll, the normaliser 1/Z included (see
                `unmask.objectives`). By default the mean over masked tokens.
            needs: statistics of `Scores` to return as well (a process's `needs`); None for none. "gradient"
                adds the lengths of the gradient at the hidden states.
            objective: one that reweights tokens by the model's own scores; any other changes nothing.
        """
        prepared = batch if isinstance(batch, Prepared) else self.prepare(batch, weights)
        prepared = prepared.to(self.device)
        inputs, place, spread = prepared.inputs, prepared.place, prepared.spread
        hidden, output = self._run(inputs)
        states, targets, token_weights = hidden.flatten(0, 1).index_select(0, place), prepared.target, prepared.weight

        factor, sharpness = None, None
        if objective is not None and objective.reads is not None:
            with torch.no_grad():
                _, nll, found = self.head(states, targets, token_weights, self.mask_token_id, objective.reads)
                scores = Scores(**{name: spread(value) for name, value in found.items()}, nll=spread(nll))
                rows = prepared.batch.to(hidden.device)
                factor, extra = objective.reweight(rows, scores), objective.sharpness(rows, scores)
                token_weights = token_weights * factor.flatten()[place]
                sharpness = None if extra is None else extra.flatten()[place]
        loss, nll, found = self.head(states, targets, token_weights, self.mask_token_id, needs, sharpness)
        full_nll = spread(nll)
        statistics = {name: spread(value) for name, value in found.items()}
        gradient = statistics.pop("gradient", None)
        scores = None if needs is None else Scores(**statistics, nll=full_nll)
        balance = None
        if self._options and self.training and self.head.readout is not None:
            balance = self.head.readout.balance(output, inputs.real) * token_weights.sum()
            loss = loss + balance
            balance = balance.detach()
        return MaskedOutput(loss, full_nll, scores, gradient, balance, factor)

    @torch.no_grad()
    def predict(
        self,
        noisy: Tensor,
        attention: Tensor,
        masked: Tensor,
        block: Tensor | None = None,
        document: Tensor | None = None,
    ) -> Tensor:
        """[N, V] logits in fp32 at the N masked positions, row by row, with the mask token at -inf.

        With `block` [B, L], position i sees its own and earlier blocks alone, as they are in `noisy`: the model
        of block diffusion at the block that is being filled, where the earlier ones are known. With `document`
        [B, L] it sees its own document alone.
        """
        self._check_masked(noisy, masked, attention, document)
        hidden = self.hidden(noisy, attention, block, document=document).flatten(0, 1)
        return self.head.logits(hidden[masked.flatten()], self.mask_token_id)

    def _check_masked(self, noisy: Tensor, masked: Tensor, attention: Tensor, document: Tensor | None = None) -> None:
        """Raise ValueError for masks of the rows `noisy` that the model cannot predict; it is asked for `masked`."""
        if self.shifted and document is not None and bool((masked[:, 1:].to(document) * document.diff(dim=1)).any()):
            raise ValueError(
                "a shifted model cannot predict the first token of a document that sees no other: begin each with a "
                "BOS token that is not maskable"
            )
        if self.shifted and bool((masked[:, 0] | (masked[:, 1:] & ~attention[:, :-1]).any(1)).any()):
            raise ValueError(
                "a shifted model cannot predict position 0: prepend a BOS token, or make position 0 unmaskable"
            )
        if not self.sees_only_masks and bool(((noisy == self.mask_token_id) >= attention).all(1).any()):
            raise ValueError(
                f"{type(self.backbone).__name__} rescales what it sees by the share that is masked, and a row is all "
                "masks: keep a token of each row given (its class or end token)"
            )

    def _container_names(self) -> dict[str, str]:
        """Names of `state_dict()` against those of the Hugging Face model, matched by identity."""
        theirs = {id(t): name for name, t in self._container[0].state_dict(keep_vars=True).items()}
        return {name: theirs[id(t)] for name, t in self.state_dict(keep_vars=True).items()}
