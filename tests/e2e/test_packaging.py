"""What `packaging/` promises, tried: the unit is one that systemd takes and finds tight; the binary serves in the container's
file tree, with no library beyond the image's, no capability and nothing to write to but its data."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import time

import holdfast
import pytest
from test_control_plane import Arm, children, wanted
from test_gateway import call

# What `gcr.io/distroless/cc-debian12` has.
LIBRARIES = {"libc.so.6", "libgcc_s.so.1", "libm.so.6", "libstdc++.so.6", "libgomp.so.1", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
USER = "65532"
# `systemd-analyze security` counts from 0.0, nothing exposed, to 10.0. Network, and a user that is not made for the run, are left.
MOST_EXPOSED = 15


def needed(what, there):
    """CI is to skip nothing."""
    if there:
        return
    if os.environ.get("CI"):
        pytest.fail(f"CI must have {what}")
    pytest.skip(f"{what} is missing: the packaging was not tried")


@pytest.mark.parametrize("template, name", [("holdfast", "holdfast"), ("holdfast-pool@", "holdfast-pool@payroll")])
def test_systemd_takes_the_unit_and_finds_it_tight(repository, tmp_path, template, name):
    needed("systemd-analyze", shutil.which("systemd-analyze"))
    unit = tmp_path / f"{name}.service"
    text = (repository / "packaging" / "systemd" / f"{template}.service").read_text()
    # Neither the program, the page nor the user is installed here.
    unit.write_text(re.sub(r"(?m)^Documentation=.*\n", "", text).replace("/usr/bin/holdfast", holdfast.binary()))
    if name != "holdfast":
        assert_verifies(unit)
        assert_is_tight(unit)
        return
    dropped = tmp_path / "holdfast.service.d"
    dropped.mkdir()
    network = (repository / "packaging" / "systemd" / "holdfast-network.conf").read_text()
    for drop_in in ("", network.replace("/usr/bin/holdfast", holdfast.binary())):
        (dropped / "network.conf").write_text(drop_in)
        assert_verifies(unit)
    assert_is_tight(unit)


def assert_verifies(unit):
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=300)
    said = [line for line in (done.stdout + done.stderr).splitlines() if "holdfast" in line]
    assert done.returncode == 0 and said == [], (said, done.stderr)


def assert_is_tight(unit):
    words = ["systemd-analyze", "security", "--offline=true", f"--threshold={MOST_EXPOSED}", "--no-pager", unit]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    print(done.stdout.splitlines()[-1] if done.stdout else done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr


def libraries():
    listed = subprocess.run(["ldd", holdfast.binary()], capture_output=True, text=True, check=True).stdout
    return [pathlib.Path(path) for path in re.findall(r"(/\S+) \(0x", listed)]


@pytest.fixture
def container(tmp_path, repository):
    """The image's file tree, as its Containerfile has it, read-only, in name spaces of its own; as its user."""
    needed("root and unshare", os.geteuid() == 0 and shutil.which("unshare") and shutil.which("chroot"))
    file = (repository / "packaging" / "Containerfile").read_text()
    assert f"USER {USER}:{USER}\n" in file and 'ENTRYPOINT ["/usr/bin/holdfast"]\n' in file
    words = json.loads(re.search(r"(?m)^CMD (\[.*\])$", file).group(1))
    # Clients here need not find the names under localhost.
    words.remove("--one-port")
    pool = holdfast.Pool(tmp_path)
    tree = tmp_path / "tree"
    for directory in ("usr/bin", "data", "proc", "dev"):
        (tree / directory).mkdir(parents=True)
    shutil.copy(holdfast.binary(), tree / "usr" / "bin" / "holdfast")
    for library in libraries():
        assert library.name in LIBRARIES, f"{library} is not in the image"
        place = tree / library.relative_to("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, place)
    (tree / "dev" / "null").touch()
    pool.data.mkdir(mode=0o700)
    os.chown(pool.data, int(USER), int(USER))
    script = """
        set -eu
        mount --bind "$1" "$1"
        mount --bind "$2" "$1/data"
        mount -t proc -o nosuid,nodev,noexec proc "$1/proc"
        mount --bind /dev/null "$1/dev/null"
        mount -o remount,bind,ro "$1"
        tree=$1 user=$3; shift 3
        exec chroot --userspec="$user:$user" --groups= "$tree" /usr/bin/holdfast "$@"
    """
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script, "sh", tree, pool.data, USER]
    began = time.monotonic()
    with open(pool.log_path, "ab") as log:
        pool.process = subprocess.Popen(
            [*command, *words, "--port", str(pool.port)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={"PATH": os.environ["PATH"]},
        )
    holdfast.RUNNING.append(pool)
    try:
        pool._wait_until_ready(began)
        yield pool
    finally:
        pool.kill()


def test_the_image_has_all_that_the_binary_needs(container):
    (server,) = children(container.process.pid)
    owner = Arm(container.exports("--az"), "ADMIN")
    assert owner("PUT", f"{owner.pools}/inside", wanted(owner))[0] == 200
    assert call(container, "inside")["status"] == 200
    container.create("ec")
    processes = [server, *children(server)]
    # The server, its gateway, and the pool's.
    assert len(processes) == 3, processes
    for pid in processes:
        lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
        status = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
        assert status["Uid"] == status["Gid"] == [USER] * 4 and status["Groups"] == [], status
        assert status["NoNewPrivs"] == ["1"]
        for capabilities in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
            assert int(status[capabilities][0], 16) == 0, (capabilities, status)
        mounts = pathlib.Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
        writable = {line.split()[4] for line in mounts if line.split()[5].startswith("rw")}
        assert writable == {"/data", "/proc", "/dev/null"}, mounts
    os.kill(server, signal.SIGTERM)
    assert container.process.wait(holdfast.STOP_SECONDS) == 0, container.log()
