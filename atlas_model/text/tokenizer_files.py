"""The file that a checkpoint folder's tokenizer is in, and the kind that its name says."""

from collections.abc import Callable, Mapping
from pathlib import Path

from atlas_model.text.huggingface_tokenizer import HuggingFaceTokenizer
from atlas_model.text.sentencepiece_tokenizer import SentencePieceTokenizer
from atlas_model.text.tokenizer import Tokenizer, TokenizerError

_KINDS: Mapping[str, Callable[[bytes], Tokenizer]] = {
    kind.file_name: kind for kind in (SentencePieceTokenizer, HuggingFaceTokenizer)
}


def find_tokenizer(directory: Path) -> Path:
    """The folder's tokenizer.model or tokenizer.json. `TokenizerError` when it has neither, or both."""
    found = [directory / name for name in _KINDS if (directory / name).is_file()]
    if not found:
        raise TokenizerError(f"{directory} has neither {' nor '.join(_KINDS)}")
    if len(found) > 1:
        raise TokenizerError(
            f"{directory} has both {' and '.join(_KINDS)}: leave the one that its model was trained with"
        )
    return found[0]


def load_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer of the kind that the file's ending says. `TokenizerError` names the file and what is wrong."""
    for name, kind in _KINDS.items():
        if path.suffix == Path(name).suffix:
            try:
                return kind(path.read_bytes())
            except TokenizerError as error:
                raise TokenizerError(f"{path}: {error}") from error
    raise TokenizerError(f"{path} is no tokenizer: its name must end as {' or '.join(_KINDS)} do")
