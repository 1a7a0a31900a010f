"""What a Hugging Face model does between its backbone and its logits, run by the model's own forward.

Encoders put a dense layer, an activation and a norm before the output layer, others a multiplier; some cap or scale
the logits after it. None of this is copied here. The model's forward is run on a shallow copy of the model, a shell,
in which backbone and output layer are replaced: the one hands over hidden states that are known already, the other
tells what it is given, or hands over logits that are known already. So the part before and the part after the output
layer are run alone, for as many positions as are wanted, and whatever a family does is done.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput


class ReadOut(nn.Module):
    """The parts before and after a model's output layer, at any positions.

    Args:
        model: a Hugging Face language model.
        backbone: the part of it that makes the hidden states.
        example: what the backbone returns: the type of its result and the width of its states.

    Raises:
        ValueError: for a model whose forward does not run its output layer, or not without its backbone.
    """

    def __init__(self, model: PreTrainedModel, backbone: nn.Module, example: ModelOutput) -> None:
        super().__init__()
        self._model = (model,)  # a tuple keeps it from being registered
        self._result, self._width = cast(Any, type(example)), cast(Any, example).last_hidden_state.shape[-1]
        names = {id(module): name for name, module in model.named_modules()}
        self._backbone, self._output = names[id(backbone)], names[id(model.get_output_embeddings())]
        self.adopt()
        hidden = torch.zeros(1, self._width, dtype=self._weight.dtype, device=self._weight.device)
        logits = torch.zeros(1, len(self._weight), device=self._weight.device)
        with torch.enable_grad():
            try:
                self.changes_states = not _same(self.before(hidden), hidden)
                made = self.after(logits)
                self.changes_logits = not _same(made, logits)
            except (AttributeError, IndexError, RuntimeError, TypeError) as error:
                raise ValueError(
                    f"{type(model).__name__} has a read-out that does not run by itself: {error}"
                ) from error
        read = leaves(made)
        self._late = [name for name, parameter in model.named_parameters() if id(parameter) in read]

    def late(self) -> list[Tensor]:
        """The weights that are read after the output layer (a bias), as far as they are trained."""
        found = [self._model[0].get_parameter(name) for name in self._late]
        return [parameter for parameter in found if parameter.requires_grad]

    def adopt(self) -> None:
        """Register what the model has besides backbone and output layer, so that its weights are trained.

        To be called again where modules were replaced in the model.
        """
        taken = self._backbone, self._output

        def besides(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
            for name, child in module.named_children():
                path = prefix + name
                if path not in taken and self._backbone.startswith(f"{path}."):
                    yield from besides(child, f"{path}.")
                elif path not in taken:
                    yield path, child

        for path, child in besides(self._model[0], ""):
            self.add_module(path.replace(".", "_"), child)

    @torch.compiler.disable()
    def before(self, hidden: Tensor) -> Tensor:
        """[N, d'] what the output layer is given where the backbone ends in the states [N, d]."""

        def tell(states: Tensor) -> Tensor:
            raise _Reached(states)

        try:
            self._run(hidden, tell)
        except _Reached as reached:
            return reached.states.reshape(len(hidden), reached.states.shape[-1])
        raise ValueError(
            f"{type(self._model[0]).__name__} makes its logits without calling its output layer, "
            f"{self._output}: the masked head cannot take its place"
        )

    @torch.compiler.disable()
    def after(self, logits: Tensor) -> Tensor:
        """[N, V] the model's logits where its output layer gives these."""
        hidden = torch.zeros(len(logits), self._width, dtype=self._weight.dtype, device=logits.device)
        return self._run(hidden, lambda _: logits[None]).logits.reshape(logits.shape)

    @torch.compiler.disable()
    def balance(self, output: Any, attention: Tensor | None) -> Tensor:
        """What a mixture of experts adds to its loss for even routing, its coefficient included: a scalar.

        Args:
            output: what the backbone returned, router logits included.
            attention: [B, N] bool, the tokens it ran that are real; None for all.

        Raises:
            ValueError: for a model that adds nothing.
        """
        states = output.last_hidden_state
        given = self._result(**dict(output) | {"last_hidden_state": states[:, :0]})  # no logits are needed
        ids = torch.zeros(states.shape[:2], dtype=torch.int64, device=states.device)
        shell = self._model_shell(given, lambda x: x.new_zeros(*x.shape[:-1], len(self._weight)))
        shell.__dict__["_loss_function"] = lambda *_, **__: states.new_zeros((), dtype=torch.float32)
        loss = shell(input_ids=ids, attention_mask=attention, labels=ids, output_router_logits=True).loss
        if loss is None or not (loss.requires_grad or not states.requires_grad):
            raise ValueError(
                f"{type(self._model[0]).__name__} has no loss for its router: unset output_router_logits"
            )
        return loss

    @property
    def _weight(self) -> Tensor:
        return cast(Any, self._model[0].get_output_embeddings()).weight

    def _run(self, hidden: Tensor, output: Callable[[Tensor], Tensor]) -> Any:
        """The model's forward, from the backbone's states [N, d] on, with another output layer."""
        shell = self._model_shell(self._result(last_hidden_state=hidden[None]), output)
        return shell(input_ids=torch.zeros(1, len(hidden), dtype=torch.int64, device=hidden.device))

    def _model_shell(self, result: Any, output: Callable[[Tensor], Tensor]) -> nn.Module:
        """The model with a backbone that returns `result`, and another output layer."""
        parts = {self._backbone: lambda *_, **__: result, self._output: output}
        return _shell(self._model[0], parts)


class _Reached(Exception):
    """Raised at the output layer: what follows is not wanted."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states


def _shell(module: nn.Module, parts: dict[str, Callable[..., Any]]) -> nn.Module:
    """A copy that shares everything with a module but its hooks and the forward of some parts, by path.

    Parameters stay in the one dictionary that both have, so that what swaps them there (FSDP) swaps them for both.
    """
    shell = object.__new__(type(module))
    own = shell.__dict__
    own.update(module.__dict__)
    own["_modules"] = children = dict(module._modules)
    for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
        own[hooks] = OrderedDict()
    own["_compiled_call_impl"] = None
    if "" in parts:
        own["forward"] = parts[""]
    for name in {path.split(".")[0] for path in parts if path}:
        below = {path[len(name) + 1 :]: part for path, part in parts.items() if path.split(".")[0] == name}
        children[name] = _shell(cast(nn.Module, children[name]), below)
    return shell


def leaves(tensor: Tensor) -> set[int]:
    """Ids of the weights that a tensor was computed from."""
    found, seen, ahead = set(), set(), [tensor.grad_fn]
    while ahead:
        node: Any = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        ahead += [before for before, _ in node.next_functions]
    return found


def _same(result: Tensor, given: Tensor) -> bool:
    """Whether nothing was computed: the result is what was given, or a view of it. Needs no values (meta device)."""
    return result.shape == given.shape and _root(result) is _root(given)


def _root(tensor: Tensor) -> Tensor:
    return tensor if tensor._base is None else tensor._base
