"""The peers themselves, each skipped where its package is not installed: the extra `peers` is not part of CI.

Run them where it is: `python -m pytest tests/bench/test_peer_packages.py`.
"""

import importlib
from contextlib import ExitStack
from types import ModuleType
from typing import Any

import pytest
import torch

from atlas_model import PRESETS, num_parameters
from bench.peers.contender import Contender
from bench.peers.peers import PEERS
from bench.peers.shapes import llama_num_parameters, llama_shape

DEMO = PRESETS["demo"]

pytestmark = pytest.mark.filterwarnings("default")


def module_of(peer: str, package: str) -> ModuleType:
    pytest.importorskip(package, reason=f"{package} is not installed (extra peers)")
    return importlib.import_module(PEERS[peer])


@pytest.fixture(scope="module")
def titans() -> list[Contender]:
    contenders: list[Contender] = module_of("titans-pytorch", "titans_pytorch").contenders(DEMO, 2)
    return contenders


@pytest.fixture(scope="module")
def llamas() -> list[Any]:
    contenders: list[Any] = module_of("transformers", "transformers").contenders(DEMO, 2)
    return contenders


@pytest.fixture(scope="module")
def recurrent() -> list[Any]:
    pytest.importorskip("gguf", reason="gguf is not installed (extra peers)")
    contenders: list[Any] = module_of("llama.cpp", "llama_cpp").contenders(DEMO, 2)
    return contenders


def test_titans_reads_and_writes_finite_tokens_over_chunks_and_segments(titans: list[Contender]) -> None:
    for each in titans:
        each.prefill(torch.randint(DEMO.vocab_size, (2, 70)))
        with each.writing(2, position=70, room=40) as write:
            write(40)


def test_titans_is_about_as_large_as_our_model_in_its_layout(titans: list[Contender]) -> None:
    ours = importlib.import_module(PEERS["atlas-mac"]).contenders(DEMO, 1)[0].description.size
    for each in titans:
        ratio = each.description.size.num_parameters_per_token / ours.num_parameters_per_token
        assert 0.9 < ratio < 1.2
        assert each.description.size.num_parameters_per_token >= num_parameters(DEMO)


def test_llamas_have_the_parameters_that_the_formula_says(llamas: list[Any]) -> None:
    sizes = [each.description.size.num_parameters for each in llamas]
    assert sizes == [llama_num_parameters(llama_shape(DEMO, heads)) for heads in (1, 1, 1, 4)]


def test_a_llama_with_a_random_cache_stands_behind_it_and_attends_to_it(llamas: list[Any]) -> None:
    for each in llamas:
        if each.description.name == "llama-compiled":
            continue
        each.prefill(torch.randint(DEMO.vocab_size, (2, 20)))
        with each.writing(2, position=50, room=9) as write:
            write(8)
        cache = each.filled_cache(2, 50, 9)
        assert int(cache.get_seq_length()) == 50
        assert bool((cache.layers[0].keys[:, :, :50].abs().sum(-1) > 0).all())


@pytest.mark.slow
def test_a_compiled_llama_picks_the_tokens_of_one_that_is_not(llamas: list[Any]) -> None:
    compiled, plain = llamas[1], llamas[2]
    torch.manual_seed(1)
    token_ids = torch.randint(DEMO.vocab_size, (1, 1))
    with torch.inference_mode():
        caches = []
        for each in (compiled, plain):
            torch.manual_seed(2)
            caches.append(each.filled_cache(1, 30, 4))
        logits = [
            each.step(token_ids, past_key_values=cache).logits
            for each, cache in zip((compiled, plain), caches, strict=True)
        ]
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-3, atol=1e-4)


def test_recurrent_models_have_the_parameters_of_their_shapes_and_a_state_that_moves(recurrent: list[Any]) -> None:
    for each in recurrent:
        assert each.num_parameters() == each.description.size.num_parameters
        each.prefill(torch.randint(DEMO.vocab_size, (2, 30)))
        with each.writing(2, position=30, room=8) as write:
            before = each.state_bytes()
            write(8)
            assert len(each.state_bytes()) == len(before)
            assert each.state_bytes() != before


def test_a_recurrent_model_goes_on_from_its_prompt_and_not_from_nothing(recurrent: list[Any]) -> None:
    for each in recurrent:
        token_ids = torch.randint(DEMO.vocab_size, (1, 40))
        whole = each.read(token_ids)
        each.read(token_ids[:, :-1])
        assert torch.equal(each.feed(token_ids[:, -1:], position=39), whole)
        state = each.state_bytes()
        each.read(token_ids[:, -1:])
        assert each.state_bytes() != state


def test_every_peer_can_be_left_and_come_back_to(
    titans: list[Contender], llamas: list[Any], recurrent: list[Any]
) -> None:
    with ExitStack() as stack:
        writes = [stack.enter_context(each.writing(1, 20, 4)) for each in (titans[0], llamas[0], recurrent[0])]
        for _ in range(2):
            for write in writes:
                write(2)
