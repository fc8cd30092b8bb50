"""A fixed sample of hostile inputs; tests/soak_doors.py uses them by the thousand."""

import pytest

from labelgen.errors import VsslError
from tests.mutants import Mutants

COUNTS = {"checkpoint": 2, "option": 4, "result": 1}


@pytest.fixture(scope="module")
def mutants(tmp_path_factory):
    return Mutants(tmp_path_factory.mktemp("doors"))


@pytest.mark.parametrize("kind", Mutants.KINDS)
@pytest.mark.filterwarnings("ignore")  # of libraries, about what they refuse
def test_hostile_inputs_are_used_or_refused(mutants, kind):
    refused = []
    for seed in range(COUNTS.get(kind, 3)):
        try:
            mutants(kind, seed)
        except (VsslError, OSError) as error:
            refused.append(str(error))
    assert all(refused)  # each with its reason
    assert refused or kind == "result"  # which is read in any case
