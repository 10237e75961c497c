"""Receive webhooks: verify each request, ignore repetitions, and answer at once.

Needs a running `tweezer up`, and in the environment the secret with which it signs:

    WEBHOOK_SECRET=$(tweezer webhooks secret) python examples/webhook_receiver.py
"""

import os
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tweezer import WebhookInvalid, verify_webhook

PORT = int(os.environ.get("PORT", "8809"))
SECRET = os.environ["WEBHOOK_SECRET"]
MAX_BODY = 64 * 1024  # bytes; a webhook has less than 20,000
seen: set[str] = set()  # a real receiver keeps these ids in its database


class Receiver(BaseHTTPRequestHandler):
    """Answer 204 to a genuine webhook, 401 to any other request."""

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        if length > MAX_BODY:
            self.answer(413)
            return
        body = self.rfile.read(length)  # the bytes as they were sent: the signature covers exactly these
        try:
            webhook = verify_webhook(body, dict(self.headers), SECRET)
        except WebhookInvalid as error:
            print(f"refused: {error.message}", flush=True)
            self.answer(401)
            return
        self.answer(204)  # first: Tweezer waits for the answer, and repeats the webhook without one
        if webhook.id in seen:
            return
        seen.add(webhook.id)
        data = webhook.data
        line = f"{data.get('sequence', '-'):>3}  {webhook.type:<14} {data.get('status', '')}\n"
        print(line, end="", flush=True)  # in one write: requests run in separate threads

    def answer(self, status: int) -> None:
        """Send a response without a body."""
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing: each webhook is printed above."""


with ThreadingHTTPServer(("127.0.0.1", PORT), Receiver) as server:
    print(f"waiting for webhooks at http://127.0.0.1:{server.server_port}/", flush=True)
    with suppress(KeyboardInterrupt):
        server.serve_forever()
