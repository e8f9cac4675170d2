"""A small HTTP application, as somebody would write it without knowing of Skiff."""

import os
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

STARTED = time.time()


class Hello(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        text = "hello from {} on Python {}, up {:.1f} s\n".format(
            os.environ.get("K_REVISION", "nowhere"),
            sys.version.split()[0],
            time.time() - STARTED,
        )
        body = text.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, form, *args):
        print(form % args, flush=True)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def stop(_signal, _frame):
    sys.exit(0)


signal.signal(signal.SIGTERM, stop)
Server(("", int(os.environ.get("PORT", "8080"))), Hello).serve_forever()
