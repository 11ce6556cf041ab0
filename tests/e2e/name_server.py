# A name server with every trouble a resolver may have with one. It answers by the table,
# on 127.0.0.1, port 53, until it is ended.

from __future__ import annotations

import ipaddress
import socket
import struct

A, AAAA, IN = 1, 28, 1
SERVFAIL, NXDOMAIN, REFUSED = 2, 3, 5
SILENCE = None

ANSWERS: dict[str, list[str] | int | None] = {
    "good.test": ["127.0.0.9"],
    "many.test": [f"127.0.0.{last}" for last in range(2, 52)],
    "mapped.test": ["::ffff:127.0.0.9"],
    "empty.test": [],
    "servfail.test": SERVFAIL,
    "refused.test": REFUSED,
    "nowhere.test": NXDOMAIN,
    "silent.test": SILENCE,
}


def name_in(question: bytes) -> str:
    labels = []
    while question[0]:
        labels.append(question[1 : 1 + question[0]].decode())
        question = question[1 + question[0] :]
    return ".".join(labels).lower()


def answer_to(query: bytes) -> bytes | None:
    """RFC 1035, 4.1; the question is the last part of a query, as no extension is asked for."""
    question = query[12:]
    kind = int.from_bytes(question[-4:-2])
    found = ANSWERS.get(name_in(question), NXDOMAIN)
    if found is SILENCE:
        return None
    code, addresses = (found, []) if isinstance(found, int) else (0, found)
    packed = [ipaddress.ip_address(address).packed for address in addresses]
    fitting = [one for one in packed if len(one) == {A: 4, AAAA: 16}.get(kind)]
    head = query[:2] + struct.pack("!HHHHH", 0x8180 | code, 1, len(fitting), 0, 0)
    records = [b"\xc0\x0c" + struct.pack("!HHIH", kind, IN, 60, len(one)) + one for one in fitting]
    return head + question + b"".join(records)


def main() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 53))
        print("listening", flush=True)
        while True:
            query, resolver = sock.recvfrom(1500)
            answer = answer_to(query)
            if answer is not None:
                sock.sendto(answer, resolver)


if __name__ == "__main__":
    main()
