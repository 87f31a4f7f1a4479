"""Kill -9 at random moments under load: what was acknowledged is there, and so is the record of every use.

`HOLDFAST_KILL_ROUNDS` says how often (default 50), `HOLDFAST_KILL_SEED` repeats a run's moments.
"""

import collections
import hashlib
import http.client
import os
import random
import threading
import time
import uuid

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.hashes import SHA256

from holdfast import Pool, b64, fresh_name, key_path, unb64

ROUNDS = int(os.environ.get("HOLDFAST_KILL_ROUNDS", "50"))
SEED = int(os.environ.get("HOLDFAST_KILL_SEED", str(random.SystemRandom().randrange(2**32))))
# After so many rounds a new pool: verifying the whole log each time must not become the test.
ROUNDS_PER_POOL = 25
WORKERS = 3
KEYS_PER_WORKER_AND_ROUND = 20
DIGEST = hashlib.sha256(b"message").digest()


class Load:
    """Workers that make keys and sign until the server is gone, and note what was acknowledged."""

    def __init__(self, pool, first_event):
        self.pool = pool
        # Events before this index are of earlier rounds.
        self.first_event = first_event
        self.created = []  # (correlation id, bundle)
        self.signed = []  # (correlation id, bundle, signature)
        self.refused = []
        self.begun = threading.Event()
        self.token = pool.token()
        self.threads = [threading.Thread(target=self._work, daemon=True) for _ in range(WORKERS)]

    def start(self):
        for thread in self.threads:
            thread.start()

    def join(self):
        for thread in self.threads:
            thread.join(120)
            assert not thread.is_alive(), "a request hangs although the server is gone"

    def _work(self):
        try:
            connection = self.pool.connection()
            mine = []
            while True:
                if not mine or (len(mine) < KEYS_PER_WORKER_AND_ROUND and len(self.signed) % 5 == 0):
                    mine.append(self._create(connection))
                self._sign(connection, mine[-1])
        except (OSError, http.client.HTTPException):
            pass  # the server is gone; what has no whole answer was not acknowledged

    def _create(self, connection):
        correlation_id = str(uuid.uuid4())
        body = {"kty": "EC-HSM", "crv": "P-256", "tags": {"round": correlation_id}}
        answer = self._call(connection, f"/keys/{fresh_name()}/create", body, correlation_id)
        self.created.append((correlation_id, answer.json))
        return answer.json

    def _sign(self, connection, bundle):
        correlation_id = str(uuid.uuid4())
        body = {"alg": "ES256", "value": b64(DIGEST)}
        answer = self._call(connection, key_path(bundle) + "/sign", body, correlation_id)
        self.signed.append((correlation_id, bundle, unb64(answer.json["value"])))
        self.begun.set()

    def _call(self, connection, path, body, correlation_id):
        answer = self.pool.call(
            "POST", path, body, token=self.token, connection=connection, correlation_id=correlation_id
        )
        if answer.status != 200:
            self.refused.append(answer)
            raise http.client.HTTPException("refused")
        return answer


def assert_nothing_was_lost(pool, load):
    """Every key and every event that the load had acknowledged is there after a restart. Gives the index of the
    next event."""
    with_connection = pool.connection()
    for _, bundle in load.created:
        answer = pool.call("GET", key_path(bundle), connection=with_connection)
        assert answer.status == 200, f"acknowledged key is gone: {key_path(bundle)}: {answer}"
        assert answer.json == bundle, "acknowledged key has changed"
    with_connection.close()
    found = pool.audit(load.first_event)
    indices = [event["holdfast"]["index"] for event in found]
    assert indices == list(range(load.first_event, load.first_event + len(found))), "a gap in the log"
    events = collections.Counter(
        (event["correlationId"], event["operationName"], event["httpStatusCode"]) for event in found
    )
    for correlation_id, bundle in load.created:
        assert events[correlation_id, "KeyCreate", 200] == 1, f"event of {key_path(bundle)}"
    for correlation_id, bundle, _ in load.signed:
        assert events[correlation_id, "KeySign", 200] == 1, f"event of a signature by {key_path(bundle)}"
    for _, bundle, signature in load.signed[-3:]:
        verify(bundle, signature)
    return load.first_event + len(found)


def verify(bundle, signature):
    key = bundle["key"]
    numbers = ec.EllipticCurvePublicNumbers(
        int.from_bytes(unb64(key["x"])), int.from_bytes(unb64(key["y"])), ec.SECP256R1()
    )
    der = utils.encode_dss_signature(int.from_bytes(signature[:32]), int.from_bytes(signature[32:]))
    numbers.public_key().verify(der, DIGEST, ec.ECDSA(utils.Prehashed(SHA256())))


@pytest.mark.timeout(max(900, ROUNDS * 60))
def test_kill_loses_nothing_that_was_acknowledged(tmp_path):
    moments = random.Random(SEED)
    print(f"seed {SEED}, {ROUNDS} rounds")
    keys = signatures = next_event = 0
    pool = None
    for round_number in range(ROUNDS):
        if round_number % ROUNDS_PER_POOL == 0:
            if pool:
                pool.stop()
            pool = Pool(tmp_path / f"pool-{round_number}")
            pool.data.parent.mkdir()
            pool.start()
            next_event = 0
        load = Load(pool, next_event)
        load.start()
        assert load.begun.wait(120), f"no signature within 120 s; refused: {load.refused[:3]}\n{pool.log()}"
        time.sleep(moments.uniform(0, 0.4))
        pool.kill()
        load.join()
        context = f"round {round_number}, seed {SEED}"
        assert not load.refused, f"{context}: {load.refused[:3]}"
        pool.verify_audit()
        pool.start()
        try:
            next_event = assert_nothing_was_lost(pool, load)
        except AssertionError as error:
            raise AssertionError(f"{context}: {error}") from error
        keys += len(load.created)
        signatures += len(load.signed)
    pool.stop()
    print(f"{ROUNDS} kills: {keys} keys and {signatures} signatures acknowledged, none lost")
    assert keys >= ROUNDS and signatures >= ROUNDS


def test_kill_while_nobody_calls_changes_nothing(own_pool):
    own_pool.start()
    bundle = own_pool.create("rsa", tags={"a": "b"})
    own_pool.kill()
    own_pool.start()
    assert own_pool.call("GET", key_path(bundle)).json == bundle
    own_pool.stop()
    own_pool.verify_audit()


def test_a_flipped_bit_in_the_log_is_found(own_pool):
    own_pool.start()
    bundle = own_pool.create("ec")
    for _ in range(20):
        body = {"alg": "ES256", "value": b64(DIGEST)}
        assert own_pool.call("POST", key_path(bundle) + "/sign", body).status == 200
    own_pool.stop()
    own_pool.verify_audit()
    logs = [
        path
        for path in sorted((own_pool.data / "pool").rglob("*"))
        if path.is_file() and "audit" in str(path)
    ]
    assert logs, "no audit files under pool/"
    largest = max(logs, key=lambda path: len(path.read_bytes().rstrip(b"\0")))
    data = bytearray(largest.read_bytes())
    used = len(bytes(data).rstrip(b"\0"))
    data[used // 2] ^= 1
    largest.write_bytes(data)
    refused = own_pool.run("audit", "verify", check=False)
    assert refused.returncode != 0, refused.stdout
    assert (refused.stdout + refused.stderr).strip()
