"""A function that answers what its event asks for. With WATCH it has an
extension within itself that takes the telemetry of its instance."""

import http.server
import json
import os
import sys
import threading
import time
import urllib.request

seen = []


class Broken(Exception):
    pass


def handler(event, context):
    if isinstance(event, dict) and "say" in event:
        print(event["say"], flush=True)
    match event:
        case {"raise": message}:
            raise Broken(message)
        case {"exit": code}:
            sys.stdout.flush()
            os._exit(code)
        case {"env": name}:
            return os.environ.get(name)
        case "seen":
            return seen
        case {"sleep": seconds}:
            time.sleep(seconds)
        case "context":
            client = context.client_context
            return {
                "name": context.function_name,
                "version": context.function_version,
                "arn": context.invoked_function_arn,
                "memory": context.memory_limit_in_mb,
                "request": context.aws_request_id,
                "group": context.log_group_name,
                "stream": context.log_stream_name,
                "remaining": context.get_remaining_time_in_millis(),
                "custom": client.custom if client else None,
            }
    return event


class Taker(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        seen.extend(json.loads(body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


def call(method, path, body=None, **headers):
    url = f"http://{os.environ['AWS_LAMBDA_RUNTIME_API']}{path}"
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    data = None if body is None else json.dumps(body).encode()
    return urllib.request.urlopen(urllib.request.Request(url, data, headers, method=method))


def watch():
    server = http.server.HTTPServer(("sandbox.localdomain", 8085), Taker)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    extension = "/2020-01-01/extension"
    registered = call("POST", f"{extension}/register", {"events": ["INVOKE"]}, Lambda_Extension_Name="watcher")
    own = {"Lambda_Extension_Identifier": registered.headers["Lambda-Extension-Identifier"]}
    subscription = {
        "schemaVersion": "2022-12-13",
        "types": ["platform", "function"],
        "buffering": {"timeoutMs": 25, "maxItems": 1000, "maxBytes": 262144},
        "destination": {"protocol": "HTTP", "URI": "http://sandbox.localdomain:8085"},
    }
    call("PUT", "/2022-07-01/telemetry", subscription, **own).read()

    def events():
        while True:
            call("GET", f"{extension}/event/next", **own).read()

    threading.Thread(target=events, daemon=True).start()


if os.environ.get("WATCH"):
    watch()
