"""How long a full backup of many keys takes, how large it is, and what memory the server needs for it.

    HOLDFAST_BIN=… HOLDFAST_AZURITE=… python tests/e2e/bench_backup.py [KEYS [VERSIONS]]

Half of the keys are EC, half AES; 5000 keys of 10 versions each unless others are asked for. A backup is made of a tenth of
them first: memory that grew with the pool would show in the difference.
"""

import concurrent.futures
import pathlib
import sys
import tempfile
import time

from azurite import Azurite
from holdfast import Pool
from test_backup_azure import back_up, finished, restore

WORKERS = 8


def create(pool, names, versions):
    def work(part):
        connection = pool.connection(timeout=120)
        for name in part:
            kind = {"kty": "EC-HSM", "crv": "P-256"} if name.endswith("e") else {"kty": "oct-HSM", "key_size": 256}
            for _ in range(versions):
                answer = pool.call("POST", f"/keys/{name}/create", kind, connection=connection)
                assert answer.status == 200, answer

    pool.token("app")
    with concurrent.futures.ThreadPoolExecutor(WORKERS) as workers:
        list(workers.map(work, [names[first::WORKERS] for first in range(WORKERS)]))


def peak_kib(pool):
    """The most memory that the server ever had, arena and all."""
    status = pathlib.Path(f"/proc/{pool.process.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def measure(pool, storage, name):
    uri = storage.make_container(name)
    sas = storage.sas()
    before, began = peak_kib(pool), time.monotonic()
    folder = back_up(pool, uri, sas)
    seconds = time.monotonic() - began
    size = sum(len(storage.get(name, blob)) for blob in storage.blobs(name))
    print(f"backup   {seconds:8.2f} s  {size / 2**20:8.2f} MiB  peak {before / 1024:.0f} -> {peak_kib(pool) / 1024:.0f} MiB", flush=True)
    return uri, sas, folder


def main(keys=5000, versions=10):
    with tempfile.TemporaryDirectory() as directory:
        directory = pathlib.Path(directory)
        with Azurite(directory) as storage, Pool(directory, *storage.flags()) as pool:
            names = [f"key-{number:05}-{'ea'[number % 2]}" for number in range(keys)]
            first = keys // 10
            create(pool, names[:first], versions)
            print(f"{first} keys of {versions} versions", flush=True)
            measure(pool, storage, "tenth")
            began = time.monotonic()
            create(pool, names[first:], versions)
            print(f"{keys} keys of {versions} versions, made in {time.monotonic() - began:.0f} s", flush=True)
            uri, sas, folder = measure(pool, storage, "whole")
            before, began = peak_kib(pool), time.monotonic()
            assert finished(pool, restore(pool, uri, sas, folder))["status"] == "Succeeded"
            print(
                f"restore  {time.monotonic() - began:8.2f} s  peak {before / 1024:.0f} -> {peak_kib(pool) / 1024:.0f} MiB"
            )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
