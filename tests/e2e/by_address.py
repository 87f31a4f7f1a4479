"""One HTTPS request to an address, under a server name and a host of the caller's choice. Runs by itself as well, so that it
can be sent from another network namespace: `python by_address.py '{"address": …}'` prints its answer as JSON."""

import http.client
import json
import socket
import ssl
import sys

# For each step, on a machine that does much else.
SECONDS = 60


def call(address, port, ca, *, name=None, host=None, method="GET", path="/", token=None, body=None, before_hex=""):
    """`address`: with a slash it is the path of a Unix socket. `name`: of the server, in TLS; `None`: none is sent.
    `before_hex`: what is sent first, ahead of TLS."""
    context = ssl.create_default_context(cafile=ca)
    context.check_hostname = name is not None
    with connected(address, port) as plain:
        plain.sendall(bytes.fromhex(before_hex))
        with context.wrap_socket(plain, server_hostname=name) as stream:
            connection = http.client.HTTPSConnection(address, port)
            connection.sock = stream
            headers = {"Host": host or f"{name or 'localhost'}:{port}"}
            if token:
                headers["Authorization"] = f"Bearer {token}"
            text = json.dumps(body) if body is not None else None
            connection.request(method, path, text, headers)
            answer = connection.getresponse()
            return {"status": answer.status, "headers": dict(answer.headers), "body": json.loads(answer.read() or "null")}


def connected(address, port):
    if "/" not in address:
        return socket.create_connection((address, port), timeout=SECONDS)
    stream = socket.socket(socket.AF_UNIX)
    stream.settimeout(SECONDS)
    stream.connect(address)
    return stream


if __name__ == "__main__":
    print(json.dumps(call(**json.loads(sys.argv[1]))))
