"""Addresses by which processes on several machines find each other."""

import socket

import pytest

from catseg_hf.errors import UserError
from catseg_hf.utils.processes import check_addresses, join_processes, tell_if_alone


@pytest.fixture
def launched(monkeypatch):
    """A function that sets what a launcher sets, for one of two machines with a process each."""

    def launch(name: str, **settings: object):
        monkeypatch.setattr(socket, "gethostname", lambda: name)
        monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
        defaults = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 1, "RANK": 1, "GROUP_RANK": 1, "MASTER_PORT": 1}
        for key, value in {**defaults, **settings}.items():
            monkeypatch.setenv(key, str(value))

    return launch


@pytest.fixture
def port():
    """One that something listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("check", [check_addresses, lambda: join_processes().__enter__()])
def test_name_that_leads_back_to_the_machine(check, launched):
    launched("localhost", MASTER_ADDR="192.0.2.1")
    with pytest.raises(UserError, match="name 'localhost' leads back to itself.*GLOO_SOCKET_IFNAME on every machine"):
        check()


def test_first_machine_that_calls_itself_by_such_a_name(launched):
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()[1]
    launched("localhost", MASTER_ADDR="localhost", MASTER_PORT=closed)
    with pytest.raises(UserError, match="calls itself 'localhost'.*--local_addr"):
        check_addresses()


@pytest.mark.parametrize(
    "name, settings",
    [
        ("192.0.2.7", {"MASTER_ADDR": "192.0.2.1"}),
        ("localhost", {"MASTER_ADDR": "192.0.2.1", "GLOO_SOCKET_IFNAME": "eth0"}),
        ("localhost", {"MASTER_ADDR": "192.0.2.1", "LOCAL_WORLD_SIZE": 2}),
        ("localhost", {"MASTER_ADDR": "127.0.0.1", "GROUP_RANK": 0}),
        ("no-such-name.invalid", {"MASTER_ADDR": "192.0.2.1"}),
    ],
)
def test_what_is_accepted(name, settings, launched):
    launched(name, **settings)
    check_addresses()


def test_two_launchers_on_one_machine(launched, port):
    launched("localhost", MASTER_ADDR="localhost", MASTER_PORT=port)
    check_addresses()


@pytest.mark.parametrize("address, is_refused", [("127.0.0.1", False), ("192.0.2.1", True)])
def test_machines_that_accelerate_does_not_bring_together(address, is_refused, monkeypatch, capsys):
    for name in ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("MASTER_ADDR", address)
    if is_refused:
        with pytest.raises(UserError, match="write to the same output. Add --multi_gpu"):
            tell_if_alone()
    else:
        tell_if_alone()
        assert "works alone" in capsys.readouterr().err
