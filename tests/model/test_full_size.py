"""Both released architectures against what the authors' code computes."""

import pytest

from catseg_testing.full_size import ARCHITECTURES, assert_golden, full_size_state_dict
from conftest import converted_model


pytestmark = pytest.mark.slow


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_full_size(architecture):
    assert_golden(converted_model(full_size_state_dict(architecture)), architecture)
