"""The rehearsal catches mistakes: what is planted into a method is found, with its line."""

import pytest

from tests.standin.rehearsal import PRECISION_TABLE, RehearsalError, line_of, precisions, train, train_in_two

WAITING = {
    "item": "item",
    "to_list": "download",
    "new_tensor": "upload of pageable memory",
    "mask": "nonzero",
    "mask_to_put": "with a mask",
    "index_of_the_host": "upload of pageable memory",
    "index_to_put": "with indices of the CPU",
    "pageable_upload": "upload of pageable memory",
    "blocking_download": "download",
    "choice": "item",
}
REFUSED = {
    "two_devices": "Expected all tensors to be on the same device",
    "list_of_two_devices": "Expected all tensors to be on the same device",
    "probabilities": "unsafe to autocast",
    "bank_of_another_type": "source and destination dtypes match",
}

pytestmark = pytest.mark.slow


def test_each_wait_is_told_with_its_line(rehearse):
    found = rehearse(train, "rotation", *WAITING)
    for mistake, what in WAITING.items():
        assert any(told.startswith(line_of(mistake)) and told.endswith(what) for told in found.waits), mistake


@pytest.mark.parametrize("mistake", REFUSED)
def test_what_a_gpu_refuses_is_refused(rehearse, mistake):
    with pytest.raises(RehearsalError, match=REFUSED[mistake]) as refused:
        rehearse(train, "rotation", mistake)
    assert f"at {line_of(mistake)}: " in str(refused.value)


def test_low_precision_is_told_with_its_line(rehearse):
    assert [what.split()[0] for what in rehearse(train, "rotation", "low_precision").low] == [line_of("low_precision")]


def test_a_checkpoint_that_misses_a_tensor_is_found(rehearse):
    found = rehearse(train, "rotation", "forgotten_tensor")
    assert found.differs and found.differs[-1].startswith("log.csv")


def test_a_collective_refuses_a_tensor_of_the_host(rehearse_in_two):
    for rank in rehearse_in_two(train_in_two, "rotation", "collective_of_the_host"):
        with pytest.raises(RehearsalError, match="No backend type associated with device type cpu") as refused:
            rank.result()
        assert f"at {line_of('collective_of_the_host')}: " in str(refused.value)


def test_autocast_has_the_lists_of_cuda(rehearse):
    """As the table of torch.amp says of CUDA."""
    assert rehearse(precisions) == PRECISION_TABLE
