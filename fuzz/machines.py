"""Hostile input for everything that reads octets of a peer: the SOCKS machines, the header
of UDP datagrams, the answer of an identd.

    python -m fuzz.machines [--cases N] [--seed S] [--only CASE]

Whatever comes in, (1) nothing but ProtocolError is raised; (2) what is held while more is
needed is no longer than the longest legal message; (3) every answer has a length the
protocol has; (4) where a login is needed, no request of SOCKS5 comes without one (SOCKS4
has none: its requests are refused by the session); (5) after a refusal nothing is read as
protocol any more; (6) a request has a host that the one parser of names passes. A case that
breaks a rule is named, and --only runs it again alone.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from random import Random

from fastsocks.auth import choose_method
from fastsocks.errors import ProtocolError, Reply
from fastsocks.proto import ident, udp, wire
from fastsocks.proto.machine import Machine, Methods
from fastsocks.proto.socks4 import Socks4
from fastsocks.proto.socks5 import Socks5
from fastsocks.proto.wire import Credentials, Request
from fuzz import messages

SEED, CASES = 1928, 1_000_000
BATCH = 10_000

# The longest message of each: SOCKS4a with a user id and a name of 255, RFC 1929.
HELD_LIMIT = {Socks4: 8 + 256 + 256, Socks5: 513}
ANSWER_LENGTHS = {Socks4: {0, 8}, Socks5: {0, 2, 10, 22}}

OWN_HOSTS = ("192.0.2.1", "2001:db8::1", "fe80::1%lo", "127.0.0.1")


class BrokenRuleError(AssertionError):
    pass


def rule(holds: object, what: str) -> None:
    if not holds:
        raise BrokenRuleError(what)


def answered(machine: Machine, answer: bytes) -> None:
    rule(len(answer) in ANSWER_LENGTHS[type(machine)], f"an answer of {len(answer)} octets")
    if len(answer) > 2 and isinstance(machine, Socks5):
        rule(answer[2] == 0 and len(answer) == {1: 10, 4: 22}.get(answer[3]), "a wrong reply")


def sound(request: Request) -> None:
    rule(request.command in wire.COMMAND_NAMES, "a command that does not exist")
    rule(0 <= request.port < 65536, "a port that cannot be")
    if request.command == wire.UDP_ASSOCIATE and not request.host:
        return
    rule(request.host == request.host.strip() and request.host.isprintable(), "a wild host")
    literal = wire.packed_ipv4(request.host) or wire.packed_ipv6(request.host)
    rule(bool(literal) != request.is_name, "a literal that counts as a name, or a name as one")


def talk(rng: Random, login_needed: bool, strict: bool) -> None:
    """One client, as the session treats it."""
    stream = messages.conversation(rng)
    machine: Machine | None = None
    let_in = refused = False
    for segment in messages.cut(rng, stream):
        if machine is None:
            if segment[0] not in (4, 5):
                return
            machine = Socks4() if segment[0] == 4 else Socks5()
        machine.feed(segment)
        try:
            while (event := machine.next_event()) is not None:
                rule(not refused, "an event after a refusal")
                if isinstance(event, Request):
                    granted = let_in or not login_needed or isinstance(machine, Socks4)
                    rule(granted, "a request without the login it needs")
                    sound(event)
                    answered(machine, machine.granted(rng.choice(OWN_HOSTS), rng.randrange(65536)))
                    answered(machine, machine.refusal(rng.choice(tuple(Reply))))
                    machine.leftover()
                    rule(machine.next_event() is None, "an event after the request")
                    return
                if isinstance(event, Methods):
                    method = choose_method(event, login_needed, strict)
                    if method is None:
                        refused = True
                        answered(machine, machine.choose(wire.NO_ACCEPTABLE))
                    else:
                        rule(method in event, "a method that was not offered")
                        rule(method or not login_needed, "no login, and one is needed")
                        answered(machine, machine.choose(method))
                else:
                    right = event == Credentials(messages.USER, messages.PASSWORD)
                    accepted = right or not login_needed
                    let_in, refused = accepted, not accepted
                    answered(machine, machine.verdict(accepted))
        except ProtocolError as error:
            if error.reply is not None:
                answered(machine, machine.refusal(error.reply))
            return
        if refused:
            machine.leftover()  # the session reads no more
        held = len(machine._data)
        rule(held <= HELD_LIMIT[type(machine)], f"{held} octets are held")


def relay(rng: Random) -> None:
    data = messages.datagram(rng)
    for _ in range(rng.choice((0, 1, 3))):
        data = messages.damage(rng, data)
    parsed = udp.parse(data)
    if isinstance(parsed, udp.Fault):
        return
    rule(not data[2] and 0 < parsed.port < 65536, "a datagram that must be dropped")
    rule(0 < len(parsed.raw) <= 255 and parsed.payload <= len(data), "a datagram out of bounds")
    length = {wire.ATYP_IPV4: 4, wire.ATYP_IPV6: 16}.get(parsed.atyp)
    if length is None:
        try:
            wire.parse_name(parsed.raw)
        except ProtocolError:
            return
    else:
        rule(len(parsed.raw) == length, "an address of the wrong length")
        text = wire.ipv4_text if length == 4 else wire.ipv6_text
        back = udp.parse(udp.header(text(parsed.raw), parsed.port))
        rule(isinstance(back, udp.Datagram) and back.port == parsed.port, "no way back")


def identify(rng: Random) -> None:
    ports, kind = (
        rng.choice((b"6191, 1080", b"1,2", b"", b"6191,1080")),
        rng.choice((b"USERID", b"ERROR")),
    )
    answer = (
        ports
        + b" : "
        + kind
        + b" : UNIX : "
        + rng.choice((b"root", b"", messages.noise(rng)))
        + b"\r\n"
    )
    for _ in range(rng.choice((0, 1, 3))):
        answer = messages.damage(rng, answer)
    ident.is_complete(answer)
    parsed = ident.parse(answer, 6191, 1080)
    if parsed.outcome is ident.Outcome.NAME:
        rule(b"6191" in answer and b"1080" in answer, "a name for another connection")
        rule(0 < len(parsed.name) <= ident.NAME_LIMIT, f"a name of {len(parsed.name)} octets")


def case(seed: int, number: int) -> None:
    rng = Random(seed << 32 | number)
    match number % 8:
        case 0:
            relay(rng)
        case 1:
            identify(rng)
        case kind:
            talk(rng, login_needed=kind < 5, strict=kind == 7)


def batch(job: tuple[int, int, int]) -> str | None:
    """The first case of these that breaks a rule, or None."""
    seed, first, last = job
    for number in range(first, last):
        try:
            case(seed, number)
        except Exception as error:
            return f"case {number} of seed {seed}: {type(error).__name__}: {error}"
    return None


def run(cases: int = CASES, seed: int = SEED) -> str | None:
    jobs = [(seed, at, min(at + BATCH, cases)) for at in range(0, cases, BATCH)]
    # Spawned: whoever asks may have threads and loops, which a fork would copy.
    with multiprocessing.get_context("spawn").Pool() as pool:
        for trouble in pool.imap_unordered(batch, jobs):
            if trouble:
                return trouble
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else "")
    parser.add_argument("--cases", type=int, default=CASES)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--only", type=int, metavar="CASE")
    words = parser.parse_args()
    if words.only is not None:
        case(words.seed, words.only)
        return 0
    trouble = run(words.cases, words.seed)
    print(trouble or f"{words.cases} cases, no rule broken")
    return 1 if trouble else 0


if __name__ == "__main__":
    sys.exit(main())
