"""Network rules: set by the Azure CLI, unmodified, kept from start to start, and enforced on the client's own address, in
namespaces with addresses of their own where the tests may make some."""

import http.client
import json
import os
import socket
import subprocess
import sys

import by_address
import holdfast
import pytest
from test_az import CLOUD, Az
from test_control_plane import GROUP, Arm, wait, wanted
from test_gateway import refused_as_stranger

KEYS = "/keys?api-version=7.4"
ROLES = "/providers/Microsoft.Authorization/roleDefinitions?api-version=7.4"
# Where clients of a private network come in.
PRIVATE = "127.0.0.2"
OUTSIDE = f"198.18.{os.getpid() % 250}"


def may_make_namespaces():
    """Root may, unless the machine forbids it."""
    name = f"hf-probe-{os.getpid()}"
    try:
        made = subprocess.run(["ip", "netns", "add", name], capture_output=True)
    except FileNotFoundError:
        return False
    if made.returncode == 0:
        subprocess.run(["ip", "netns", "del", name], check=True)
    return made.returncode == 0


def in_namespaces():
    """CI is to skip nothing: there the lack of namespaces is a failure."""
    if may_make_namespaces():
        return
    if os.environ.get("CI"):
        pytest.fail("CI must be able to make network namespaces: root, and iproute2")
    pytest.skip("network namespaces need root and iproute2: true addresses were not tested")


class Unanswered(OSError):
    """What a client in another namespace says who got no answer."""


class Outside:
    """A namespace with two addresses, and this machine's end of the cable to it."""

    def __init__(self):
        self.name, self.cable = f"hf-{os.getpid()}", f"hf{os.getpid() % 100000}"
        self.here, self.first, self.second = (f"{OUTSIDE}.{last}" for last in (1, 2, 3))

    def __enter__(self):
        ip("netns", "add", self.name)
        ip("link", "add", f"{self.cable}a", "type", "veth", "peer", "name", f"{self.cable}b")
        ip("link", "set", f"{self.cable}b", "netns", self.name)
        ip("address", "add", f"{self.here}/24", "dev", f"{self.cable}a")
        ip("link", "set", f"{self.cable}a", "up")
        for address in (self.first, self.second):
            ip("-n", self.name, "address", "add", f"{address}/24", "dev", f"{self.cable}b")
        ip("-n", self.name, "link", "set", f"{self.cable}b", "up")
        return self

    def __exit__(self, *_):
        ip("netns", "del", self.name)
        subprocess.run(["ip", "link", "del", f"{self.cable}a"], capture_output=True)

    def call(self, source, **request):
        """As `by_address.call`, from `source`, which the kernel takes as the connection's own address."""
        ip("-n", self.name, "route", "replace", f"{self.here}/32", "dev", f"{self.cable}b", "src", source)
        words = ["ip", "netns", "exec", self.name, sys.executable, by_address.__file__]
        done = subprocess.run(
            [*words, json.dumps({"address": self.here, **request})], capture_output=True, text=True, timeout=300
        )
        if done.returncode != 0:
            raise Unanswered(done.stderr)
        return json.loads(done.stdout)


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture(scope="module")
def outside():
    if not may_make_namespaces():
        yield None
        return
    with Outside() as outside:
        yield outside


@pytest.fixture(scope="module")
def own(tmp_path_factory, outside):
    flags = ["--listen", outside.here] if outside else []
    flags += ["--private-listen", f"office={PRIVATE}"]
    with holdfast.Pool(tmp_path_factory.mktemp("network"), *flags) as pool:
        yield pool


@pytest.fixture(scope="module")
def variables(own):
    return own.exports("--az")


@pytest.fixture(scope="module")
def owner(variables):
    return Arm(variables, "ADMIN")


@pytest.fixture(scope="module")
def walled(own, owner):
    assert owner("PUT", f"{owner.pools}/walled", wanted(owner))[0] == 200
    return f"{owner.pools}/walled"


def rules(owner, pool, **properties):
    status, answer = owner("PATCH", pool, {"properties": properties})
    assert status == 200, answer
    return answer["properties"]


def open_again(owner, pool):
    rules(
        owner,
        pool,
        publicNetworkAccess="Enabled",
        networkAcls={"bypass": "AzureServices", "defaultAction": "Allow", "ipRules": []},
    )


def asked(own, name="walled", **more):
    request = {
        "port": own.port + 1,
        "ca": own.ca_file,
        "name": f"{name}.managedhsm.localhost",
        "path": ROLES,
        "token": own.token("admin"),
    }
    return {**request, **more}


def code(answer):
    return answer["body"]["error"].get("innererror", {}).get("code") or answer["body"]["error"]["code"]


def test_az_sets_shows_and_removes_rules(own, owner, walled, variables, tmp_path):
    az = Az(variables, tmp_path)
    az("cloud", "register", "--name", CLOUD, "--endpoint-resource-manager", variables["ARM_URL"])
    az("cloud", "set", "--name", CLOUD)
    az.login(variables["HOLDFAST_ADMIN_CLIENT_ID"], f"--password={variables['HOLDFAST_ADMIN_CLIENT_SECRET']}")
    hsm = ["--hsm-name", "walled", *GROUP]
    added = az("keyvault", "network-rule", "add", *hsm, "--ip-address", "192.0.2.0/24", "198.51.100.7")
    assert [rule["value"] for rule in added["properties"]["networkAcls"]["ipRules"]] == ["192.0.2.0/24", "198.51.100.7"]
    removed = az("keyvault", "network-rule", "remove", *hsm, "--ip-address", "198.51.100.7/32")
    assert [rule["value"] for rule in removed["properties"]["networkAcls"]["ipRules"]] == ["192.0.2.0/24"]
    closed = az("keyvault", "update-hsm", *hsm, "--default-action", "Deny", "--bypass", "None")
    acls = closed["properties"]["networkAcls"]
    assert (acls["defaultAction"], acls["bypass"]) == ("Deny", "None")
    listed = az("keyvault", "network-rule", "list", *hsm)
    assert (listed["defaultAction"], listed["bypass"], len(listed["ipRules"])) == ("Deny", "None", 1)
    answer = by_address.call("127.0.0.1", **asked(own))
    assert answer["status"] == 403 and code(answer) == "ForbiddenByFirewall", answer
    access = az("keyvault", "update-hsm", *hsm, "--public-network-access", "Disabled", "--default-action", "Allow")
    assert access["properties"]["publicNetworkAccess"] == "Disabled"
    assert by_address.call("127.0.0.1", **asked(own))["status"] == 403
    open_again(owner, walled)
    assert by_address.call("127.0.0.1", **asked(own))["status"] == 200


def test_rules_that_make_no_sense_are_refused_and_change_nothing(owner, walled):
    before = owner("GET", walled)[1]["properties"]
    for properties, said in [
        ({"networkAcls": {"ipRules": [{"value": "192.0.2.1/24"}]}}, "its network is 192.0.2.0/24"),
        ({"networkAcls": {"ipRules": [{"value": "example.com"}]}}, "neither an address nor a network"),
        ({"networkAcls": {"ipRules": [{"value": f"192.0.2.{last}"} for last in range(11)]}}, "at most 10"),
        ({"networkAcls": {"ipRules": [{"value": "192.0.2.1"}, {"value": "192.0.2.1/32"}]}}, "twice"),
        ({"networkAcls": {"ipRules": ["192.0.2.1"]}}, "ipRules"),
        ({"networkAcls": {"ipRules": {}}}, "ipRules"),
        ({"networkAcls": {"defaultAction": "deny all"}}, "'Deny' or 'Allow'"),
        ({"networkAcls": {"bypass": True}}, "'AzureServices' or 'None'"),
        ({"networkAcls": {"virtualNetworkRules": [{"id": "x"}]}}, "virtualNetworkRules"),
        ({"networkAcls": []}, "an object"),
        ({"publicNetworkAccess": "SecuredByPerimeter"}, "'Enabled' or 'Disabled'"),
    ]:
        status, error = owner("PATCH", walled, {"properties": properties})
        assert status == 400 and said in error["message"], (properties, error)
    assert owner("GET", walled)[1]["properties"] == before


def test_a_refused_client_shows_its_token_to_nobody(own, owner, walled):
    rules(owner, walled, networkAcls={"defaultAction": "Deny", "ipRules": [{"value": "192.0.2.0/24"}]})
    try:
        for token in (None, "nonsense", own.token("admin")):
            answer = by_address.call("127.0.0.1", **asked(own, token=token))
            assert (answer["status"], code(answer)) == (403, "ForbiddenByFirewall"), answer
            assert "127.0.0.1" in answer["body"]["error"]["message"]
            assert "WWW-Authenticate" not in answer["headers"]
        # The pool's own listener knows the same rules.
        direct = int((own.data / "pools" / "walled" / "port").read_text())
        answer = by_address.call("127.0.0.1", **asked(own, port=direct))
        assert (answer["status"], code(answer)) == (403, "ForbiddenByFirewall"), answer
        # Past the firewall, for whoever runs the machine: token and role are asked for as anywhere.
        assert local(own, direct, None).status == 401
        assert local(own, direct, own.token("app")).status == 403
        assert local(own, direct, own.token("admin")).status == 200
    finally:
        open_again(owner, walled)


def local(own, port, token):
    """A call through a pool's administration socket."""
    stream = socket.socket(socket.AF_UNIX)
    stream.connect(str(own.data / "run" / f"{port}.adm"))
    connection = http.client.HTTPConnection("localhost")
    connection.sock = stream
    connection.request("GET", ROLES, headers={"Authorization": f"Bearer {token}"} if token else {})
    return holdfast.Answer(connection.getresponse())


def test_true_addresses_decide(own, owner, walled, outside):
    in_namespaces()
    assert outside.call(outside.first, **asked(own))["status"] == 200
    changed = rules(
        owner, walled, networkAcls={"defaultAction": "Deny", "ipRules": [{"value": f"{outside.first}/32"}]}
    )
    assert changed["networkAcls"]["ipRules"] == [{"value": outside.first}]
    for _ in range(2):
        assert outside.call(outside.first, **asked(own))["status"] == 200
        answer = outside.call(outside.second, **asked(own))
        assert (answer["status"], code(answer)) == (403, "ForbiddenByFirewall"), answer
        assert outside.second in answer["body"]["error"]["message"]
        # Another pool has other rules.
        assert outside.call(outside.second, **asked(own, "demo", path=KEYS, token=own.token()))["status"] == 200
        # The rules outlive the process of the pool and that of the control plane.
        own.kill()
        own.start()
        wait(lambda: outside.call(outside.first, **asked(own))["status"] == 200)
    # A header that only the gateway may write is no way to another address.
    for port, name in ((own.port + 1, "walled"), (own.port + 1, "demo")):
        with pytest.raises(Unanswered):
            outside.call(outside.second, **asked(own, name, port=port), before_hex=forged(outside).hex())
    open_again(owner, walled)
    assert outside.call(outside.second, **asked(own))["status"] == 200


def test_a_private_way_leads_to_one_pool_and_only_while_it_is_approved(own, owner, walled):
    rules(owner, walled, publicNetworkAccess="Disabled")
    link = {"privateLinkServiceId": walled, "groupIds": ["managedhsm"]}
    subnet = f"{owner.group}/providers/Microsoft.Network/virtualNetworks/private/subnets/office"
    waiting = {"subnet": {"id": subnet}, "manualPrivateLinkServiceConnections": [{"name": "c", "properties": link}]}
    endpoint = f"{owner.group}/providers/Microsoft.Network/privateEndpoints/desk"
    assert owner("PUT", endpoint, {"location": "local", "properties": waiting})[0] == 200
    connection = f"{walled}/privateEndpointConnections/desk"

    def decide(status):
        answer = owner("PUT", connection, {"properties": {"privateLinkServiceConnectionState": {"status": status}}})
        assert answer[0] == 200, answer

    def privately(name="walled", **more):
        answer = by_address.call(PRIVATE, **asked(own, name, **more))
        return answer["status"] if answer["status"] != 403 else code(answer)

    try:
        assert privately() == "ForbiddenByFirewall"
        decide("Approved")
        assert privately() == 200
        assert privately(token=None) == 401
        assert privately(token=own.token("app")) == "ForbiddenByRbac"
        # To this pool alone, and by this way alone.
        assert privately("demo", path=KEYS, token=own.token()) == "ForbiddenByFirewall"
        assert privately("nobody") == 404
        assert by_address.call("127.0.0.1", **asked(own))["status"] == 403
        # Nobody else says by which way somebody came: not in a header, and not at the pool's own socket.
        header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + socket.inet_aton("192.0.2.9") + socket.inet_aton(PRIVATE)
        for address in ("127.0.0.1", PRIVATE):
            with pytest.raises(OSError):
                by_address.call(address, **asked(own), before_hex=(header + b"\x9c\x40\x20\xfc").hex())
        direct = int((own.data / "pools" / "walled" / "port").read_text())
        refused_as_stranger(own, own.data / "run" / f"{direct}.priv", header + b"\x9c\x40\x20\xfc", **asked(own))
        # Over a restart, and not without the network.
        own.kill()
        flags, own.flags = own.flags, [flag for flag in own.flags if flag != "--private-listen" and "office=" not in flag]
        own.start()
        wait(lambda: by_address.call("127.0.0.1", **asked(own))["status"] == 403)
        with pytest.raises(OSError):
            privately()
        own.kill()
        own.flags = flags
        own.start()
        wait(lambda: privately() == 200)
        decide("Rejected")
        assert privately() == "ForbiddenByFirewall"
    finally:
        assert owner("DELETE", endpoint)[0] == 200
        open_again(owner, walled)


def forged(outside):
    addresses = socket.inet_aton(outside.first) + socket.inet_aton(outside.here)
    return b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + addresses + b"\x9c\x40\x20\xfc"
