# How the program ends: SIGTERM and SIGINT stop accepting, let sessions finish for the
# grace period, and exit 0 whatever was under way.

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading

import pytest

from support.ends import exactly
from support.programs import wait_until

PATIENCE = 30.0


@pytest.fixture(autouse=True)
def not_below_nohup():
    """Whatever the tests themselves are below: what is ignored is inherited."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_ends_an_idle_proxy(start, engine_name, number):
    proxy = start("--engine", engine_name)
    assert proxy.stop(number) == 0
    assert proxy.refuses()


def test_a_terminal_that_goes_means_nothing_below_nohup(command, environment, tmp_path):
    said = tmp_path / "said"
    with said.open("wb") as output:
        proxy = subprocess.Popen(
            ["nohup", *command("--listen", "127.0.0.1:0")],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment(),
        )
    try:
        wait_until(lambda: "listening on" in said.read_text(), "it listens")
        port = int(said.read_text().partition("listening on 127.0.0.1:")[2].split()[0])
        proxy.send_signal(signal.SIGHUP)
        # Who comes in time is served even by one that stops; the second would be too late.
        for _ in range(2):
            with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
                client.sendall(b"\x05\x01\x00")
                assert exactly(client, 2) == b"\x05\x00"
        assert "stopping" not in said.read_text()
        proxy.terminate()
        assert proxy.wait(PATIENCE) == 0
    finally:
        proxy.kill()
        proxy.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_lets_a_download_finish(start, engine_name, number):
    data, go_on = os.urandom(1 << 20), threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(PATIENCE)

    def serve() -> None:
        with listener, listener.accept()[0] as connection:
            connection.settimeout(PATIENCE)
            connection.sendall(data)
            go_on.wait(PATIENCE)
            connection.sendall(data)

    thread = threading.Thread(target=serve)
    thread.start()
    proxy = start("--engine", engine_name, "--grace", "60")
    with proxy.connect() as client:
        client.sendall(b"\x04\x01" + listener.getsockname()[1].to_bytes(2, "big") + b"\x7f\0\0\1\0")
        assert exactly(client, 8)[:2] == b"\x00\x5a"
        assert exactly(client, len(data)) == data
        proxy.process.send_signal(number)
        wait_until(proxy.refuses, "new clients are refused")
        assert proxy.process.poll() is None
        go_on.set()
        assert exactly(client, len(data) + 1) == data
    assert proxy.ended() == 0
    thread.join(PATIENCE)


@pytest.mark.parametrize("hurry", ["the grace ends", "a second signal"])
def test_what_does_not_finish_is_cut_off(start, engine_name, origin, hurry):
    proxy = start("--engine", engine_name, "--grace", "0.3" if hurry == "the grace ends" else "60")
    with proxy.connect() as client:
        client.sendall(b"\x04\x01" + origin[1].to_bytes(2, "big") + b"\x7f\0\0\1\0")
        assert client.recv(8)[:2] == b"\x00\x5a"
        proxy.process.send_signal(signal.SIGTERM)
        wait_until(proxy.refuses, "new clients are refused")
        if hurry == "a second signal":
            proxy.process.send_signal(signal.SIGTERM)
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert proxy.ended() == 0


def test_signal_while_a_name_is_resolved(start, engine_name, tmp_path, environment):
    """A resolver that hangs keeps no program from ending."""
    (tmp_path / "sitecustomize.py").write_text(
        "import socket, time\n"
        "def hang(*arguments, **more):\n"
        "    if arguments[0] == 'slow.example': time.sleep(3600)\n"
        "    return real(*arguments, **more)\n"
        "real, socket.getaddrinfo = socket.getaddrinfo, hang\n"
    )
    source = environment()["PYTHONPATH"]
    path = f"{tmp_path}{os.pathsep}{source}"
    proxy = start("--engine", engine_name, "--grace", "0.2", PYTHONPATH=path)
    with proxy.connect() as client:
        client.sendall(b"\x05\x01\x00\x05\x01\x00\x03\x0cslow.example\x00\x50")
        assert exactly(client, 2) == b"\x05\x00"
        assert proxy.stop() == 0


@pytest.fixture
def runs_until(tmp_path, environment):
    """``runs_until(words, signal.SIGTERM, stdout=...)``: the exit status of a proxy that
    nobody can hear say where it listens, and its log."""

    def run(words, number, **streams):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            place = probe.getsockname()
        with (tmp_path / "log").open("wb") as sink:
            streams = {"stdin": subprocess.DEVNULL, "stderr": sink} | streams
            process = subprocess.Popen(
                [*words, "--listen", f"{place[0]}:{place[1]}"], env=environment(), **streams
            )
        try:

            def answers() -> bool:
                assert process.poll() is None, (tmp_path / "log").read_text()
                with socket.socket() as knock:
                    return knock.connect_ex(place) == 0

            wait_until(answers, "it listens")
            process.send_signal(number)
            return process.wait(PATIENCE), (tmp_path / "log").read_text()
        finally:
            process.kill()
            process.wait()

    return run


@pytest.mark.linux  # for /dev/full
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["at the end", "at once"])
def test_output_that_is_full_is_no_reason_to_fail(command, runs_until, unbuffered):
    words = ["env", f"PYTHONUNBUFFERED={unbuffered}", *command()]
    with open("/dev/full", "wb") as full:
        status, log = runs_until(words, signal.SIGTERM, stdout=full)
    assert status == 0
    assert "Error" not in log


@pytest.mark.parametrize(
    "arguments",
    [["-u", "me", "--password-file", "/dev/stdin"], ["--jsocks", "/dev/stdin"]],
    ids=["password", "jsocks"],
)
def test_interrupt_while_a_file_is_awaited(interrupted, arguments):
    """A file may be a FIFO, or <(...) of a shell."""
    assert interrupted("--listen", "127.0.0.1:0", *arguments) == (130, "")


def test_a_reader_who_is_gone_is_no_reason_to_stop(command, runs_until):
    """fastsocks | head: standard output is a pipe that nobody reads."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        status, log = runs_until(command(), signal.SIGTERM, stdout=write_end)
    finally:
        os.close(write_end)
    assert status == 0
    assert "Error" not in log


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_standard_streams_that_are_closed(command, runs_until, closed):
    """None of the loop's descriptors has their numbers: libuv would abort at the end."""
    words = ["sh", "-c", f'exec "$@" {closed}', "sh", *command()]
    status, log = runs_until(words, signal.SIGINT, stdout=subprocess.DEVNULL)
    assert status == 0
    assert "Error" not in log
