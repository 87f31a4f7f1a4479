import os
import pathlib
import signal

import pytest

import azurite
import holdfast


@pytest.fixture(scope="session", autouse=True)
def no_proxy_of_ours():
    """The machine's own proxy and roots must reach neither the clients nor the server under test."""
    for name in list(os.environ):
        if name.upper() in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE"):
            del os.environ[name]


@pytest.fixture(scope="session", autouse=True)
def interrupts_reach_the_server():
    """A shell starts what it runs in the background with SIGINT ignored, and children inherit that."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def pool(tmp_path_factory):
    """One running pool for all tests that leave it running."""
    with holdfast.Pool(tmp_path_factory.mktemp("pool")) as pool:
        yield pool


@pytest.fixture(scope="session")
def storage(tmp_path_factory):
    """One storage emulator for all tests; each makes containers of its own."""
    with azurite.Azurite(tmp_path_factory.mktemp("azurite")) as storage:
        yield storage


@pytest.fixture
def own_pool(tmp_path):
    """A pool that the test starts and ends as it likes."""
    pool = holdfast.Pool(tmp_path)
    yield pool
    pool.kill()


@pytest.fixture(scope="session")
def repository():
    return pathlib.Path(__file__).resolve().parents[2]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.failed:
        for pool in holdfast.RUNNING:
            report.sections.append((f"end of {pool.log_path}", pool.log()))
