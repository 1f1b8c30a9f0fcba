import pytest
import torch

from atlas_model.upload import upload
from tests.host_crossings import HostCrossings

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(("values", "dtype"), [([3, 1, 2], torch.int64), ([], torch.int64), ([0.1], torch.float64)])
def test_numbers_arrive_as_they_are_and_nobody_waits(values: list[float], dtype: torch.dtype) -> None:
    with HostCrossings() as crossings:
        uploaded = upload(values, dtype, CPU)
    assert crossings.found == []
    assert uploaded.dtype == dtype
    assert uploaded.tolist() == values


@pytest.mark.gpu
def test_what_was_uploaded_stays_as_it_was_though_its_source_is_gone() -> None:
    uploaded = [upload([value] * 1000, torch.int64, CUDA) for value in range(500)]
    assert [int(each.double().mean()) for each in uploaded] == list(range(500))


@pytest.mark.gpu
def test_torch_sees_no_synchronisation_in_an_upload() -> None:
    upload([1], torch.int64, CUDA)
    torch.cuda.set_sync_debug_mode("error")
    try:
        upload([1, 2], torch.int64, CUDA)
    finally:
        torch.cuda.set_sync_debug_mode("default")
