"""Quorums from 2 of 3 to 10 of 10, split by one of two and opened by the other: `holdfast ceremony` and the Azure CLI's own
code.

`HOLDFAST_QUORUM_SEED` repeats a run's holders and quorums.
"""

import json
import os
import random

import pytest

from test_ceremony import GOLDEN, az_code, ceremony, refused
from test_security_domain import Holder

HOLDERS = 10
SEED = int(os.environ.get("HOLDFAST_QUORUM_SEED", str(random.SystemRandom().randrange(2**32))))
# Required and holders; more are drawn.
QUORUMS = [(2, 3), (3, 5), (5, 5), (2, 10), (9, 10), (10, 10)]
DRAWN = 6
SECRETS = "holdfast.domain-secrets.v1"


@pytest.fixture(scope="module")
def holders(tmp_path_factory):
    directory = tmp_path_factory.mktemp("quorums")
    return [Holder(directory, f"holder-{number}") for number in range(HOLDERS)]


def keys(holders):
    return [word for holder in holders for word in ("--key", holder.key)]


def drawn(draw):
    """Required and holders, at random within what a domain may have."""
    count = draw.randrange(3, HOLDERS + 1)
    return draw.randrange(2, count + 1), count


def test_what_one_splits_the_other_opens_by_any_quorum_and_by_no_fewer(tmp_path, holders):
    draw = random.Random(SEED)
    print(f"seed {SEED}")
    golden = ["--key", GOLDEN / "holder-1.key", "--key", GOLDEN / "holder-2.key"]
    secrets = (GOLDEN / "../../../crypto/tests/golden/domain-secrets-v1.bin").resolve().read_bytes()
    cases = []
    for number, (required, count) in enumerate(QUORUMS + [drawn(draw) for _ in range(DRAWN)]):
        chosen = draw.sample(holders, count)
        path = tmp_path / f"{number}.json"
        new = [word for holder in chosen for word in ("--holder", holder.certificate)]
        ceremony(
            "rekey", GOLDEN / "security-domain-v1.json", *golden, *new, "--required", required, "--out", path
        )
        # In any order.
        cases.append((required, chosen, draw.sample(chosen, required), path))

    def opening(case, by):
        required, _, _, path = case
        file = json.loads(path.read_text())
        return {
            "work": "open-file",
            "file": file,
            "keys": [str(holder.key) for holder in by],
            "passphrases": [None] * len(by),
            "required": min(required, len(by)),
        }

    # Ours, opened by the CLI.
    whole = [opening(case, case[2]) for case in cases]
    short = [opening(case, case[2][:-1]) for case in cases]
    answers = az_code("many", requests=whole + short)
    assert isinstance(answers, list), answers
    for case, answer in zip(cases, answers[: len(cases)]):
        assert isinstance(answer, dict), (case[0], len(case[1]), answer)
        assert bytes.fromhex(answer["data"][SECRETS]) == secrets, f"{case[0]} of {len(case[1])}, seed {SEED}"
    for case, answer in zip(cases, answers[len(cases) :]):
        opened = isinstance(answer, dict) and any(answer["data"].values())
        assert not opened, f"{case[0] - 1} of {len(case[1])} opened it, seed {SEED}"

    # The CLI's, opened by ours. What is sealed inside names holders and quorum, so each is made of its own.
    making = [
        {
            "work": "make-file",
            "data": answer["data"],
            "master": draw.randbytes(32).hex(),
            "certificates": [str(holder.certificate) for holder in chosen],
            "required": required,
            "holdfast": json.loads(path.read_text())["holdfast"],
        }
        for (required, chosen, _, path), answer in zip(cases, answers)
    ]
    made = az_code("many", requests=making)
    assert isinstance(made, list), made
    for number, ((required, chosen, by, _), file) in enumerate(zip(cases, made)):
        assert isinstance(file, dict), file
        path = tmp_path / f"az-{number}.json"
        path.write_text(json.dumps(file))
        said = f"{required} of {len(chosen)}, seed {SEED}"
        assert "VERIFIED" in ceremony("verify", path, *keys(by)), said
        refused("verify", path, *keys(by[:-1]))
