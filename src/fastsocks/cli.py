"""The command: argv to Config, a loop to run on, signals to stop by.

Exit status: 0 stopped as asked, 1 could not run, 2 wrong usage or settings, 130
interrupted before it served. Every error is one line, never a traceback; an interrupt
is none. It must not know SOCKS, nor what a setting means.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence

from fastsocks import jsocks, passwd
from fastsocks.arguments import tell
from fastsocks.config import Config
from fastsocks.configure import flag_named, to_config, warnings_of
from fastsocks.errors import ConfigError
from fastsocks.flags import build_parser
from fastsocks.flow import endpoint, printable
from fastsocks.journal import Journal
from fastsocks.server import Server

log = logging.getLogger("fastsocks")

# What loop, engine with one thread and a listener take, and one session.
DESCRIPTORS_MIN = 24
DESCRIPTORS_PER_THREAD = 4  # an epoll, an eventfd and two timers; io_uring it can do without
# macOS says that there is no hard limit, but not all of its versions let that be asked for;
# this one (its OPEN_MAX) they do.
DESCRIPTORS_ALWAYS = 10_240


def main(argv: Sequence[str] | None = None) -> int:
    open_standard_streams()
    argv = sys.argv[1:] if argv is None else argv
    try:
        status = passwd.main(argv[1:]) if argv[:1] == ["passwd"] else run(argv)
    except SystemExit as end:  # of the parsers
        status = int(end.code or 0)
    except MemoryError:
        tell("fastsocks: there is not enough memory", sys.stderr)
        status = 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    discard_unwritable_output()
    return status


def run(argv: Sequence[str]) -> int:
    """Serves; the exit status."""
    parser = build_parser()
    options = parser.parse(argv)
    migrated = jsocks.Jsocks({}, [])
    try:
        if options.jsocks:
            migrated = jsocks.load(options.jsocks)
        config = to_config(options, migrated.settings)
    except ConfigError as error:
        parser.error(flag_named(str(error)))
    logging.basicConfig(
        level=logging.ERROR if options.quiet else options.log_level.upper(),
        format="%(asctime)s %(levelname)s %(message)s",
        handlers=[Journal(sys.stderr)],
    )
    for warning in (*migrated.warnings, *warnings_of(options, config)):
        log.warning("%s", printable(warning))
    raise_descriptor_limit()
    # What is imported by now stays: no collection need look at it again.
    gc.freeze()
    factory, loop_name = choose_loop()
    try:
        need_descriptors(config.relay_threads)
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(serve(config, loop_name))
    except ConfigError as error:
        parser.error(flag_named(str(error)))
    except OSError as error:
        tell(f"fastsocks: {error.strerror or error}", sys.stderr)
        return 1
    return 0


async def serve(config: Config, loop_name: str) -> None:
    """Until SIGINT or SIGTERM, or the terminal is gone; a second one ends the grace period."""
    stop, hurry = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (hurry if stop.is_set() else stop).set()

    loop = asyncio.get_running_loop()
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # which it is below nohup
        numbers.append(signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, on_signal)
    server = Server(config)
    server.start()
    if config.users_file is not None:
        loop.add_signal_handler(signal.SIGHUP, server.reload)
    announce(server, loop_name)
    await stop.wait()
    log.info("stopping: %d sessions have %g s to finish", server.sessions, config.grace)
    stopping = asyncio.ensure_future(server.stop())
    hurrying = asyncio.ensure_future(hurry.wait())
    await asyncio.wait((stopping, hurrying), return_when=asyncio.FIRST_COMPLETED)
    hurrying.cancel()
    if not stopping.done():
        stopping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await stopping


def announce(server: Server, loop_name: str) -> None:
    """One line for people and for programs that wait for it. A reader who has
    gone away is no reason to stop."""
    where = ", ".join(endpoint(*address) for address in server.addresses)
    login = "USER:PASSWORD@" if server.config.login_needed else ""
    host, port = server.addresses[0]
    here = endpoint({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port)
    example = f"curl -x socks5h://{login}{here} https://example.org/"
    tell(
        f"fastsocks listening on {where} (loop {loop_name}, {server.describe()}); try: {example}",
        sys.stdout,
    )


def open_standard_streams() -> None:
    """Opens as /dev/null those of the standard streams that are closed. Otherwise the loop's
    own descriptors would get their numbers, and libuv aborts when it has to close one below 3;
    and what is meant for standard error would be printed to standard output, where it is None."""
    # Where there is no /dev/null, serving is still better than not to.
    with contextlib.suppress(OSError):
        for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
            if getattr(sys, name) is None:
                setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 -- it stays open


def raise_descriptor_limit() -> None:
    """Raises it to what this user may have: the default of 1,024 is for select(), and a
    session takes two."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in (hard, max(soft, DESCRIPTORS_ALWAYS)):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            return


def choose_loop() -> tuple[Callable[[], asyncio.AbstractEventLoop], str]:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop, "asyncio"
    return uvloop.new_event_loop, "uvloop"


def need_descriptors(relay_threads: int) -> None:
    """Raises OSError where there are too few to start: a loop of uvloop that gets some
    but not all of its own cannot even be closed."""
    needed = DESCRIPTORS_MIN + max(0, relay_threads - 1) * DESCRIPTORS_PER_THREAD
    with contextlib.ExitStack() as probes:
        for _ in range(needed // 2):
            try:
                handles = os.pipe()
            except OSError as error:
                reason = f"{os.strerror(error.errno or 0)}: fastsocks needs {needed} more"
                raise OSError(error.errno, f"{reason} descriptors to start (ulimit -n)") from None
            for handle in handles:
                probes.callback(os.close, handle)


def discard_unwritable_output() -> None:
    """Discards printed output that cannot be written. Otherwise the interpreter tries again at
    exit, complains, and makes the status 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError):
                stream.close()
