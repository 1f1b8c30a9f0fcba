"""The model in Python, without a server: a checkpoint folder, token ids in, logits and a state out.

    model = AtlasForCausalLM.from_pretrained("atlas_model/pretrained/atlas-demo")
    logits, state = model(model.encode("Anna went to the garden."))
    ids, state = model.generate(model.encode_turn("Where is Anna?"), max_new_tokens=8, state=state)
    save_state("anna.safetensors", state)

A state is a value: whoever keeps one may go on from it as often as they like, and none of the calls changes it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from atlas_model.checkpoint import Checkpoint, load_checkpoint
from atlas_model.config import AtlasConfig
from atlas_model.model import AtlasModel
from atlas_model.state import State, state_spec
from atlas_model.state_migration import spec_before_rings, to_rings
from atlas_model.text import ChatFormat, Tokenizer
from atlas_model.text.chat_format import OPENING

IGNORED_LABEL = -100

# In the metadata of a state's file. Files without one are older than attention windows that are rings.
_VERSION_KEY, _VERSION = "atlas_state_version", "2"


class AtlasForCausalLM(nn.Module):
    """A model with its tokenizer. To train it: `model.requires_grad_(True)`, and `loss` differentiates the learning."""

    def __init__(self, model: AtlasModel, tokenizer: Tokenizer, chat_format: ChatFormat) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.chat_format = chat_format

    @classmethod
    def from_pretrained(cls, directory: str | Path, device: torch.device | str = "cpu") -> Self:
        """A checkpoint folder, in eval mode. Raises CheckpointError, which names the file that is wrong."""
        loaded: Checkpoint = load_checkpoint(Path(directory), device)
        return cls(loaded.model, loaded.tokenizer, loaded.chat_format)

    @property
    def config(self) -> AtlasConfig:
        return self.model.config

    def encode(self, document: str) -> Tensor:
        """A session's start and one document, as serving would feed them: int64 [1, T]."""
        ids = self.chat_format.session_start(self.tokenizer) + self.chat_format.document_start(self.tokenizer)
        ids += self.tokenizer.encode(document) + self.chat_format.document_end(self.tokenizer)
        return self._row(ids)

    def encode_turn(self, content: str, after_answer: bool = False) -> Tensor:
        """A user's message and the start of the answer, int64 [1, T]; after_answer: first end the answer before."""
        ids = [self.tokenizer.special.end] if after_answer else []
        ids += self.chat_format.message(self.tokenizer, "user", content)
        return self._row(ids + self.chat_format.generation_prompt(self.tokenizer))

    def decode(self, ids: Tensor) -> str:
        """The text of an answer, int64 [1, N]."""
        return self.tokenizer.decode(ids.flatten().tolist()).removeprefix(OPENING)

    def forward(self, ids: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """int64 [B, T] -> the next token's scores after each, [B, T, vocab_size], and the state after the last.

        Raises ValueError for ids of another shape, none, or none of the vocabulary, and for a state of other rows.
        """
        self._check_ids(ids, state)
        output = self.model(ids, state)
        return output.logits, output.state

    def loss(self, ids: Tensor, labels: Tensor, state: State | None = None) -> Tensor:
        """Mean cross-entropy of labels, int64 [B, T]: the token after each of ids. IGNORED_LABEL counts for nothing."""
        logits, _ = self(ids, state)
        return cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED_LABEL)

    @torch.no_grad()
    def generate(
        self,
        ids: Tensor,
        max_new_tokens: int,
        state: State | None = None,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, State]:
        """Read int64 [1, T] and go on: at most max_new_tokens new ids, [1, N], and the state after the last of them.

        Stops at the token that ends a message, which is neither returned nor fed: `encode_turn` puts it before the next
        turn (after_answer). temperature 0 takes the likeliest token. Raises ValueError as `forward` does, for more
        than one row, and for a negative temperature or max_new_tokens.
        """
        self._check_ids(ids, state)
        if len(ids) != 1:
            raise ValueError(f"generate goes on with one row, not {len(ids)}")
        if temperature < 0 or max_new_tokens < 0:
            raise ValueError("temperature and max_new_tokens must be at least 0")
        output = self.model(ids, state, logits="last")
        logits, state = output.logits, output.state
        new: list[Tensor] = []
        for _ in range(max_new_tokens):
            if temperature > 0:
                token = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0]
            else:
                token = logits.argmax(-1)
            if int(token) == self.tokenizer.special.end:
                break
            new.append(token)
            logits, state = self.model.step(token, state)
        return torch.stack(new, dim=1) if new else ids.new_zeros(1, 0), state

    def _check_ids(self, ids: Tensor, state: State | None) -> None:
        if ids.ndim != 2 or ids.shape[1] == 0:
            raise ValueError(f"ids must be [B, T] with T of at least 1, not {list(ids.shape)}")
        if not 0 <= int(ids.min()) <= int(ids.max()) < self.config.vocab_size:
            raise ValueError(f"ids must be from 0 to {self.config.vocab_size - 1}")
        if state is not None and state.batch_size != len(ids):
            raise ValueError(f"the state has {state.batch_size} rows, ids {len(ids)}")

    def _row(self, ids: list[int]) -> Tensor:
        return torch.tensor([ids], device=self.model.embedding.weight.device)


def save_state(path: str | Path, state: State) -> None:
    """Write a state to a safetensors file, exactly."""
    tensors = {name: tensor.contiguous() for name, tensor in state.detach().named_tensors().items()}
    save_file(tensors, path, metadata={_VERSION_KEY: _VERSION})


def load_state(path: str | Path, config: AtlasConfig) -> State:
    """Read a state that a model of this configuration wrote. Raises ValueError when it is not one."""
    try:
        with safe_open(path, framework="pt") as file:
            version = (file.metadata() or {}).get(_VERSION_KEY)
            tensors = {name: file.get_tensor(name) for name in file.offset_keys()}
    except SafetensorError as error:
        raise ValueError(f"{path}: {error}") from error
    if version not in (None, _VERSION):
        raise ValueError(f"{path}: a state of version {version}, which this release does not know")
    spec = spec_before_rings(config) if version is None else state_spec(config)
    if set(spec) != set(tensors):
        raise ValueError(f"{path}: not a state of this configuration")
    for name, each in spec.items():
        if tensors[name].shape[1:] != each.shape or tensors[name].dtype != each.dtype:
            raise ValueError(f"{path}: {name} is not the configuration's")
    tensors = {name: tensors[name] for name in spec}
    return State.from_named_tensors(config, to_rings(tensors, config) if version is None else tensors)
