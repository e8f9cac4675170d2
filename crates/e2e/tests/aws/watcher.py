#!/usr/bin/python3
"""An external extension: it notes what it finds and what it is told in `/tmp`.
`LEAVE` names an event at which it leaves with code 3."""

import http.server
import json
import os
import sys
import threading
import urllib.request

API = os.environ["AWS_LAMBDA_RUNTIME_API"]
NAME = os.path.basename(sys.argv[0])
EXTENSION = "2020-01-01/extension"


def note(file, value):
    with open(f"/tmp/{file}", "a") as out:
        out.write(json.dumps(value) + "\n")


def leave(at):
    if os.environ.get("LEAVE") == at:
        print(f"{NAME} leaves at {at}", file=sys.stderr, flush=True)
        sys.exit(3)


def call(method, path, body=None, headers={}):
    data = None if body is None else json.dumps(body).encode()
    return urllib.request.urlopen(urllib.request.Request(f"http://{API}/{path}", data, headers, method=method))


class Subscriber(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        for event in json.loads(self.rfile.read(int(self.headers["Content-Length"]))):
            note("told", event)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


leave("START")
events = {"events": ["INVOKE", "SHUTDOWN"]}
accepts = {"Lambda-Extension-Name": NAME, "Lambda-Extension-Accept-Feature": "accountId"}
registered = call("POST", f"{EXTENSION}/register", events, accepts)
me = {"Lambda-Extension-Identifier": registered.headers["Lambda-Extension-Identifier"]}
server = http.server.ThreadingHTTPServer(("0.0.0.0", 0), Subscriber)
threading.Thread(target=server.serve_forever, daemon=True).start()
subscription = {
    "schemaVersion": "2022-07-01",
    "types": ["extension", "function"],
    "buffering": {"maxItems": 1000, "maxBytes": 262144, "timeoutMs": 25},
    "destination": {"protocol": "HTTP", "URI": f"http://sandbox.localdomain:{server.server_port}"},
}
call("PUT", "2022-07-01/telemetry/", subscription, me)
without = call("PUT", "2020-08-15/logs", {}, me)
assert without.status == 202, without.status
found = {"environment": sorted(os.environ), "cwd": os.getcwd(), "user": os.getuid(), "name": NAME}
registered = json.load(registered)
note("found", {**found, "function": registered["functionName"], "account": registered["accountId"]})
while True:
    event = json.load(call("GET", f"{EXTENSION}/event/next", headers=me))
    if event["eventType"] == "INVOKE":
        assert event["tracing"]["value"].startswith("Root=1-"), event
    print(f"{NAME} gets {event['eventType']}", event.get("shutdownReason", ""), flush=True)
    leave(event["eventType"])
    if os.environ.get("POST") == event["eventType"]:
        call("POST", f"{EXTENSION}/exit/error", {}, {**me, "Lambda-Extension-Function-Error-Type": "Its.Own"})
    if event["eventType"] == "SHUTDOWN":
        break
