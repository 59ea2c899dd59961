"""How scripts report what is the user's to mend."""

import pytest
from torch.utils.data import DataLoader

from catseg_hf.errors import UserError, reports_errors


@reports_errors
def main(fault=None, status=0):
    if fault is not None:
        raise fault
    return status


class Refused:
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise UserError("The image 'a.png' could not be read: mend it.")


@reports_errors
def load() -> int:
    return len(list(DataLoader(Refused(), num_workers=1)))


@pytest.mark.parametrize(
    ("arguments", "status", "printed"),
    [
        ({}, 0, ""),
        ({"status": 3}, 3, ""),
        ({"fault": UserError("No such folder: 'a'.")}, 1, "error: No such folder: 'a'.\n"),
        ({"fault": KeyboardInterrupt()}, 130, "error: interrupted\n"),
    ],
    ids=["none", "its own", "the user's", "interrupted"],
)
def test_status(arguments, status, printed, capsys):
    assert main(**arguments) == status
    assert capsys.readouterr().err == printed


@pytest.mark.parametrize("fault", [ValueError, SystemExit])
def test_other_exceptions_pass(fault):
    with pytest.raises(fault):
        main(fault=fault())


def test_an_error_in_a_loaders_worker_is_printed_alone(start_method, capfd):
    assert load() == 1
    assert capfd.readouterr().err == "error: The image 'a.png' could not be read: mend it.\n"
