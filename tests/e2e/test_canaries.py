"""Nothing legible at rest: what a thief of `pool/` would look for is not there, in any common spelling."""

import base64
import contextlib
import os
import pathlib
import uuid

import pytest

from holdfast import Pool, fresh_name, key_path, unb64


def spellings(canary):
    """How the bytes of `canary` might stand in a file: name of the spelling, bytes to look for."""
    text = isinstance(canary, str)
    data = canary.encode() if text else canary
    found = {"raw": data, "hex": data.hex().encode(), "HEX": data.hex().upper().encode()}
    # Inside a longer text in base64 a canary starts at one of three offsets; the first and last characters of
    # its part mix with its neighbours.
    for offset in range(3):
        encoded = base64.b64encode(bytes(offset) + data)
        start = -(-offset * 8 // 6)
        end = (offset + len(data)) * 8 // 6
        part = encoded[start:end]
        found[f"base64 at {offset}"] = part
        found[f"base64url at {offset}"] = part.translate(bytes.maketrans(b"+/", b"-_"))
    if text:
        found["UTF-16LE"] = canary.encode("utf-16-le")
        found["UTF-16BE"] = canary.encode("utf-16-be")
    return found


def search(directory, canaries):
    """Every canary found under `directory`: (canary, spelling, file)."""
    files = {}
    for path in sorted(directory.rglob("*")):
        # A running pool does away with files.
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            files[path] = path.read_bytes()
    assert sum(map(len, files.values())) > 1000, f"nothing to search in {directory}"
    return [
        (name, spelling, str(path.relative_to(directory)))
        for path, data in files.items()
        for name, canary in canaries.items()
        for spelling, pattern in spellings(canary).items()
        if pattern in data
    ]


def plant(pool):
    """Makes a key with legible parts, uses it, and gives the parts by name."""
    name = fresh_name("canary-payroll")
    tag = f"canary-tag-{uuid.uuid4().hex}"
    value = f"canary-value-{uuid.uuid4().hex}"
    bundle = pool.create("rsa", name, tags={tag: value})
    digest = base64.urlsafe_b64encode(bytes(range(32))).rstrip(b"=").decode()
    answer = pool.call("POST", key_path(bundle) + "/sign", {"alg": "RS256", "value": digest})
    assert answer.status == 200, answer
    principal = pool.object_id("app")
    return {
        "key name": name,
        "tag name": tag,
        "tag value": value,
        "key version": bundle["key"]["kid"].rsplit("/", 1)[1],
        "principal": principal,
        "principal as bytes": uuid.UUID(principal).bytes,
        # Private bytes never come out, so the modulus stands for the key: it is stored beside them.
        "modulus": unb64(bundle["key"]["n"])[:64],
    }


def test_the_search_finds_what_it_looks_for(tmp_path):
    text, data = "canary-payroll", bytes(range(100, 140))
    ways = {
        "raw": text.encode(),
        "hex": data.hex().encode(),
        "HEX": data.hex().upper().encode(),
        "base64": base64.b64encode(b"pad" + text.encode() + b"!"),
        "base64 shifted": base64.b64encode(b"pad1" + text.encode() + b"!"),
        "base64url": base64.urlsafe_b64encode(b"\xff\xfe" + data + b"\xff"),
        "UTF-16LE": text.encode("utf-16-le"),
        "UTF-16BE": text.encode("utf-16-be"),
    }
    for way, planted in ways.items():
        directory = tmp_path / way
        directory.mkdir()
        (directory / "file").write_bytes(os.urandom(2000) + planted + os.urandom(2000))
        assert search(directory, {"text": text, "data": data}), way
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "file").write_bytes(os.urandom(5000))
    assert search(tmp_path / "none", {"text": text, "data": data}) == []


def test_nothing_is_legible_at_rest(own_pool):
    own_pool.start()
    canaries = plant(own_pool)
    # Found while running, too: a backup may be taken at any time.
    assert search(own_pool.data / "pool", canaries) == []
    own_pool.stop()
    assert search(own_pool.data / "pool", canaries) == []
    own_pool.start()
    own_pool.stop()
    assert search(own_pool.data / "pool", canaries) == []


def test_control_without_sealing_they_are_found(tmp_path):
    """Shows that the test above would fail if the pool wrote what it should not."""
    program = os.environ.get("HOLDFAST_BIN_UNSEALED")
    if not program:
        missing = "HOLDFAST_BIN_UNSEALED is not set: NOBODY HAS SHOWN that the search at rest can find anything"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    program = str(pathlib.Path(program).resolve(strict=True))
    with Pool(tmp_path, program=program, environment={"HOLDFAST_DANGER_NO_SEALING": "1"}) as pool:
        canaries = plant(pool)
    found = {name for name, _, _ in search(pool.data / "pool", canaries)}
    assert {"key name", "tag name", "tag value", "modulus"} <= found
    assert found & {"principal", "principal as bytes"}


def test_the_switch_is_not_in_the_real_binary(tmp_path):
    with Pool(tmp_path, environment={"HOLDFAST_DANGER_NO_SEALING": "1"}) as pool:
        canaries = plant(pool)
    assert search(pool.data / "pool", canaries) == []
