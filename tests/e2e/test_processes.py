"""Each process of a quickstart that root started is a user of its own: whoever takes one over has what is that one's, and
neither reads, ends nor looks into another. The attempts are made as that user, from the directory that its process is in."""

import ctypes
import json
import os
import pathlib
import re
import shutil
import signal
import stat

import holdfast
import pytest
from test_control_plane import Arm, children, directory_of, open_files, wait, wanted
from test_gateway import call

PTRACE_ATTACH = 16
CAP_SYS_RESOURCE = 24


@pytest.fixture(scope="module", autouse=True)
def root():
    if os.geteuid() != 0:
        if os.environ.get("CI"):
            pytest.fail("CI must be root: only then has each process a user of its own")
        pytest.skip("not root: processes with users of their own were not tested")


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    directory = tmp_path_factory.mktemp("processes")
    with holdfast.Pool(directory, environment={"HOLDFAST_LOG": "warn", "OF_ANOTHER": "secret"}) as pool:
        owner = Arm(pool.exports("--az"), "ADMIN")
        for name in ("first", "second"):
            assert owner("PUT", f"{owner.pools}/{name}", wanted(owner))[0] == 200
        yield pool


def process(own, name):
    """The process that is in that pool's directory."""
    return the_child_in(own, own.data / "pools" / name)


def gateway(own):
    return the_child_in(own, own.data / "run")


def the_child_in(own, directory):
    found = [pid for pid in children(own.process.pid) if directory_of(pid) == str(directory)]
    assert len(found) == 1, f"{directory}: {found}"
    return found[0]


def user(own, name):
    return int((own.data / "pools" / name / "user").read_text())


def status(pid):
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.split() for name, _, value in (line.partition(":") for line in lines)}


def as_user(number, directory, attempts):
    """What becomes of each attempt, as that user without any capability, in `directory`."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.chdir(directory)
            os.setgroups([])
            os.setresgid(number, number, number)
            os.setresuid(number, number, number)
            outcome = {}
            for name, attempt in attempts.items():
                try:
                    attempt()
                    outcome[name] = "done"
                except OSError as error:
                    outcome[name] = type(error).__name__
            os.write(writer, json.dumps(outcome).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        told = answer.read()
    os.waitpid(child, 0)
    return json.loads(told)


def attach(pid):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(PTRACE_ATTACH, pid, None, None):
        raise OSError(ctypes.get_errno(), "ptrace")


def read(path):
    with open(path, "rb") as file:
        file.read(1)


def make(path):
    with open(path, "xb"):
        pass


def connect(path):
    with holdfast.socket.socket(holdfast.socket.AF_UNIX) as stream:
        stream.connect(path)


def test_a_process_has_its_user_and_no_right_beside(own):
    users = [user(own, name) for name in ("first", "second")]
    assert users[0] != users[1] and min(users) >= 1_900_000_000
    for name, number in zip(("first", "second"), users):
        of = status(process(own, name))
        assert of["Uid"] == of["Gid"] == [str(number)] * 4, of
        assert of["Groups"] == [] and of["NoNewPrivs"] == ["1"], of
        for capabilities in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(of[capabilities][0], 16) == 0, (capabilities, of)
        # Its memory is locked all the same, where root may raise that limit or need not: otherwise its log says so.
        limits = pathlib.Path(f"/proc/{process(own, name)}/limits").read_text()
        locks = re.search(r"Max locked memory +unlimited +unlimited", limits) is not None
        may_raise = int(status("self")["CapEff"][0], 16) >> CAP_SYS_RESOURCE & 1
        log = (own.data / "run" / f"{name}.log").read_text()
        assert locks or not may_raise, limits
        assert ("memory is not locked" not in log and "can be locked" not in log) == locks, log
        # Of what it has open, nothing is another's.
        ours = [path for path in open_files(process(own, name)) if path.startswith(str(own.data))]
        allowed = (f"{own.data}/pools/{name}/", f"{own.data}/root/{name}.key", f"{own.data}/run/{name}.log")
        assert ours and all(path.startswith(allowed) for path in ours), ours


def attempts_on(own, other):
    key = own.data / "identity" / "issuer.json"
    assert key.exists() and (own.data / "fabric" / "store").exists()
    port = (own.data / "pools" / other / "port").read_text()
    reads = [
        f"../{other}/pool/domain.sealed",
        f"../{other}/pool/store/lock",
        f"../../root/{other}.key",
        "../../root/root.key",
        "../../identity/issuer.json",
        "../../identity/principals.json",
        "../../ca/ca.key",
        "../../pool/domain.sealed",
        "../../users.json",
        "../../quickstart.json",
        f"../../run/{other}.log",
        "port",
        "user",
    ]
    assert (own.data / "pools" / other / "pool" / "store").exists()
    pid = process(own, other)
    return {
        **{f"read {path}": lambda path=path: read(path) for path in reads},
        "list fabric": lambda: os.listdir("../../fabric"),
        "list pools": lambda: os.listdir(".."),
        "make a pool": lambda: os.mkdir("../third"),
        "replace its port": lambda: os.rename("port", "port.old"),
        "remove its user": lambda: os.remove("user"),
        "open its directory": lambda: os.chmod(".", 0o777),
        "take another's place": lambda: os.rename("pool", f"../{other}/pool"),
        "make a key": lambda: make(f"../../root/{other}.key.new"),
        "make a socket": lambda: make(f"../../run/{port}.sock.new"),
        "call the other as an administrator": lambda: connect(f"../../run/{port}.adm"),
        "call the other as the gateway": lambda: connect(f"../../run/{port}.sock"),
        "end it": lambda: os.kill(pid, signal.SIGTERM),
        "end the quickstart": lambda: os.kill(own.process.pid, signal.SIGTERM),
        "trace it": lambda: attach(pid),
        "trace the quickstart": lambda: attach(own.process.pid),
        "read its memory": lambda: read(f"/proc/{pid}/mem"),
        "read its environment": lambda: read(f"/proc/{pid}/environ"),
        "see what it has open": lambda: os.listdir(f"/proc/{pid}/fd"),
        "be root": lambda: os.setuid(0),
        "be the other": lambda: os.setuid(user(own, other)),
    }


def test_whoever_takes_a_pool_over_has_no_other(own):
    directory, number = own.data / "pools" / "first", user(own, "first")
    # The control: what is its own it can read, write and signal, so that a refusal below is one.
    mine = {
        "read": lambda: read("pool/domain.sealed"),
        "write": lambda: make("pool/mine"),
        "signal": lambda: os.kill(process_of_first, 0),
        "switch": lambda: (os.rename("pool", "pool.next"), os.rename("pool.next", "pool")),
    }
    process_of_first = process(own, "first")
    assert set(as_user(number, directory, mine).values()) == {"done"}
    (directory / "pool" / "mine").unlink()
    attempts = attempts_on(own, "second")
    outcome = as_user(number, directory, attempts)
    assert set(outcome.values()) == {"PermissionError"}, outcome
    # The directories above keep everybody out. Even with those open, what is another's is closed by itself.
    above = [own.data, own.data / "pools", own.data / "root", own.data / "run"]
    modes = [stat.S_IMODE(path.stat().st_mode) for path in above]
    try:
        for path in above:
            path.chmod(0o711)
        outcome = as_user(number, directory, attempts)
        assert set(outcome.values()) == {"PermissionError"}, outcome
    finally:
        for path, mode in zip(above, modes):
            path.chmod(mode)
    for name in ("first", "second"):
        assert call(own, name)["status"] == 200


def test_the_gateway_has_no_file_and_no_other_process(own):
    pid = gateway(own)
    of = status(pid)
    number = int(of["Uid"][0])
    assert of["Uid"] == of["Gid"] == [str(number)] * 4 and of["Groups"] == [] and of["NoNewPrivs"] == ["1"], of
    assert number == json.loads((own.data / "users.json").read_text())["first"]
    for capabilities in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(of[capabilities][0], 16) == 0, (capabilities, of)
    paths = open_files(pid)
    assert [path for path in paths if path.startswith(str(own.data))] == [f"{own.data}/run/gateway.err"], paths
    port = (own.data / "pools" / "second" / "port").read_text()
    others = {
        f"read {path}": lambda path=path: read(path)
        for path in ("../pools/second/pool/domain.sealed", "../root/root.key", "../ca/ca.key", "gateway.err", "../quickstart.json")
    }
    attempts = {
        **others,
        "list": lambda: os.listdir("."),
        "make a socket": lambda: make("1.sock"),
        "take a socket's place": lambda: os.rename(f"{port}.sock", f"{port}.old"),
        "call a pool as an administrator": lambda: connect(f"{port}.adm"),
        "call the first pool as an administrator": lambda: connect("admin.sock"),
        "end a pool": lambda: os.kill(process_of_second, signal.SIGTERM),
        "trace a pool": lambda: attach(process_of_second),
        "trace the quickstart": lambda: attach(own.process.pid),
        "be root": lambda: os.setuid(0),
        "be a pool": lambda: os.setuid(user(own, "second")),
    }
    process_of_second = process(own, "second")
    outcome = as_user(number, own.data / "run", attempts)
    assert set(outcome.values()) == {"PermissionError"}, outcome
    # The control: what it is there for.
    assert as_user(number, own.data / "run", {"call": lambda: connect(f"{port}.sock")}) == {"call": "done"}


def test_a_gateway_that_ends_or_hangs_is_started_again(own):
    for number in (signal.SIGKILL, signal.SIGSTOP):
        before = gateway(own)
        os.kill(before, number)
        began = holdfast.time.monotonic()
        wait(lambda: before not in children(own.process.pid))
        # A client that comes meanwhile waits, and is served: by each pool, as all know whom to listen to now.
        wait(lambda: all(call(own, name)["status"] == 200 for name in ("first", "second", "demo")))
        print(f"after {number.name} the gateway served again within {holdfast.time.monotonic() - began:.2f} s")
        assert gateway(own) != before


def test_what_a_pool_keeps_is_its_users_and_the_key_is_roots(own):
    for name in ("first", "second"):
        number, directory = user(own, name), own.data / "pools" / name
        of = directory.stat()
        assert (of.st_uid, of.st_gid, stat.S_IMODE(of.st_mode)) == (0, number, 0o1770)
        for path in (directory / "pool", *(directory / "pool").rglob("*")):
            try:
                of = path.lstat()
            except FileNotFoundError:
                continue  # the pool runs, and does away with files
            mode = 0o700 if stat.S_ISDIR(of.st_mode) else 0o600
            assert (of.st_uid, of.st_gid, stat.S_IMODE(of.st_mode)) == (number, number, mode), path
        of = (own.data / "root" / f"{name}.key").stat()
        assert (of.st_uid, stat.S_IMODE(of.st_mode)) == (0, 0o600)


def test_a_directory_of_an_earlier_release_is_handed_over_once(tmp_path):
    with holdfast.Pool(tmp_path) as pool:
        owner = Arm(pool.exports("--az"), "ADMIN")
        assert owner("PUT", f"{owner.pools}/old", wanted(owner))[0] == 200
        before = user(pool, "old")
        pool.stop()
        pool.start()
        wait(lambda: call(pool, "old")["status"] == 200)
        assert user(pool, "old") == before, "a pool has the same user from start to start"
        pool.stop()
        # As it was when all ran as root.
        directory = pool.data / "pools" / "old"
        (directory / "user").unlink()
        (pool.data / "users.json").unlink()
        for path in (directory, *directory.rglob("*")):
            os.lchown(path, 0, 0)
        directory.chmod(0o700)
        outside = tmp_path / "outside"
        outside.write_text("not the pool's")
        (directory / "pool" / "link").symlink_to(outside)
        pool.start()
        wait(lambda: call(pool, "old")["status"] == 200)
        after = user(pool, "old")
        assert after != before and (directory / "pool").stat().st_uid == after
        assert outside.stat().st_uid == 0, "a link is not followed"
        pool.stop()
        # Later starts change no owner: what the pool's user may have put there stays as it is.
        (directory / "pool" / "hard").hardlink_to(outside)
        pool.start()
        wait(lambda: call(pool, "old")["status"] == 200)
        assert outside.stat().st_uid == 0
        # A purged pool's user is nobody's any more.
        assert owner("PUT", f"{owner.pools}/next", wanted(owner))[0] == 200
        assert user(pool, "next") == after + 1
        # A key that is lost is said to be lost, and not made anew.
        pool.stop()
        key = pool.data / "root" / "next.key"
        shutil.move(key, tmp_path / "next.key")
        pool.start()
        log = pool.data / "run" / "next.log"
        wait(lambda: "next.key, which" in log.read_text() and "is missing" in log.read_text())
        assert not key.exists()
        shutil.move(tmp_path / "next.key", key)
        wait(lambda: call(pool, "next")["status"] == 200)


def test_no_process_has_another_programs_variables(own):
    """What a shell had is the quickstart's own, and whatever reads strangers' bytes has none of it."""
    def variables(pid):
        entries = pathlib.Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        return {entry.split(b"=")[0].decode() for entry in entries if entry}

    known = {"HOLDFAST_LOG", "NO_COLOR", "RUST_BACKTRACE"}
    assert variables(own.process.pid) - known, "there is nothing to find"
    for pid in (gateway(own), process(own, "first"), process(own, "second")):
        assert variables(pid) <= known, (pid, variables(pid))
    assert "HOLDFAST_LOG" in variables(gateway(own))
