"""The store by which the processes of a run meet."""

import socket

import pytest

from offseg_d2.distributed.ranks import open_store


def test_taken_port_is_one_sentence():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        message = rf"must be able to meet at 127\.0\.0\.1:{port}, but cannot: "
        with pytest.raises(TimeoutError, match=message):
            open_store("127.0.0.1", port, is_master=True)
