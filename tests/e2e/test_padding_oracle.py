"""RSA with PKCS#1 v1.5: whatever is wrong with a padding, the answer is one and the same, and takes as long.

Only the answers are asserted. Times are printed (`-s`), for whoever reads them: a machine that does other things as well
says nothing by a figure that is a little off. Whether a padding is right at all is what an answer must tell, as it has the
plaintext; a pool of class production therefore counts refusals (`rsa15_failures_per_hour`).
"""

import contextlib
import math
import os
import random
import statistics
import time

from cryptography.hazmat.primitives.asymmetric import rsa

from holdfast import assert_error, b64, fresh_name, key_path
from test_import import body, rsa_members

LENGTH = 256
ROUNDS = 150


def nonzero(length):
    return bytes(random.choices(range(1, 256), k=length))


def kinds():
    """Padded messages that are no padded messages, each made anew, by what is wrong with them (RFC 8017 section 7.2.2)."""
    return {
        "first byte": b"\1\2" + nonzero(221) + b"\0" + os.urandom(32),
        "block type 1": b"\0\1" + b"\xff" * 221 + b"\0" + os.urandom(32),
        "block type 0": b"\0\0" + nonzero(221) + b"\0" + os.urandom(32),
        "no zero byte": b"\0\2" + nonzero(LENGTH - 2),
        "padding of 7 bytes": b"\0\2" + nonzero(7) + b"\0" + os.urandom(LENGTH - 10),
        "no padding": b"\0\2\0" + os.urandom(LENGTH - 3),
        "random": b"\0" + os.urandom(LENGTH - 1),
    }


def welch(left, right):
    """Welch's t: beyond 4.5 either way it is taken for a difference (ISO/IEC 17825)."""
    spread = statistics.variance(left) / len(left) + statistics.variance(right) / len(right)
    return (statistics.fmean(left) - statistics.fmean(right)) / math.sqrt(spread)


def middle(samples):
    """Without the slowest tenth, which are the machine's and not the operation's."""
    return sorted(samples)[: len(samples) * 9 // 10]


def test_pkcs1_refusals_are_one_answer_and_their_times_are_reported(pool):
    private = rsa.generate_private_key(65537, LENGTH * 8)
    numbers = private.public_key().public_numbers()
    imported = pool.call("PUT", f"/keys/{fresh_name('rsa15')}", body(rsa_members(private), kty="RSA-HSM"))
    assert imported.status == 200, imported
    path = f"{key_path(imported.json)}/decrypt"
    times = {kind: [] for kind in kinds()}
    answers = set()
    pool.token()
    with contextlib.closing(pool.connection(timeout=60)) as connection:
        for _ in range(ROUNDS):
            cases = list(kinds().items())
            random.shuffle(cases)  # or what comes before would be a part of a kind
            for kind, padded in cases:
                number = int.from_bytes(padded, "big")
                value = b64(pow(number, numbers.e, numbers.n).to_bytes(LENGTH, "big"))
                began = time.perf_counter_ns()
                answer = pool.call("POST", path, {"alg": "RSA1_5", "value": value}, connection=connection)
                took = time.perf_counter_ns() - began
                if answer.status == 200:
                    # Random bytes are a good padding once in some hundred thousand times.
                    assert kind == "random", answer
                    continue
                assert_error(answer, 400, "BadParameter")
                # What is made anew for each answer has no part in it.
                answers.add((answer.status, answer.body, tuple(sorted(set(answer.headers) - {"x-holdfast-receipt"}))))
                times[kind].append(took)
    assert len(answers) == 1, answers
    print()
    for kind, samples in times.items():
        samples = middle(samples)
        others = middle([sample for other, many in times.items() if other != kind for sample in many])
        mean = statistics.fmean(samples) / 1000
        print(f"{kind:20} {len(samples):4} samples, mean {mean:7.1f} µs, t {welch(samples, others):+6.2f} against the others")
