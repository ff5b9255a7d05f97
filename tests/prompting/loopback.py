"""A local server that speaks the OpenAI wire format over one of our own models, and can be told to misbehave."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from rankwise.prompting.language_model import Sampling


class Loopback:
    """``troubles``: what to do with the next requests, from the front: a status, ``"rubbish"``, ``"hang up"``."""

    def __init__(self, model):
        self.model, self.requests, self.troubles, self.lock = model, [], [], threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.requests.append({"path": self.path, "headers": dict(self.headers), **body})
                    trouble = outer.troubles.pop(0) if outer.troubles else None
                if trouble == "hang up":
                    self.close_connection = True
                    return None
                if trouble == "rubbish":
                    return self.reply(200, b"<html>all is well</html>")
                if trouble == "empty":
                    return self.reply(200, b'{"choices": []}')
                if isinstance(trouble, int):
                    return self.reply(trouble, b'{"error": "trouble"}')
                with outer.lock:  # one model, one request at a time
                    return self.reply(200, json.dumps(outer.answer(self.path, body)).encode())

            def reply(self, status, body):
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *exc):
        self.server.shutdown()
        self.server.server_close()

    def answer(self, path, body):
        if body.get("echo"):
            return {"choices": [{"text": body["prompt"], "logprobs": self.echoed(body["prompt"])}]}
        chat = path.endswith("/chat/completions")
        prompt = body["messages"] if chat else body["prompt"]
        sampling = Sampling(
            max_new_tokens=body["max_tokens"],
            temperature=body["temperature"],
            top_p=body["top_p"],
            stop=tuple(body.get("stop", ())),
            seed=body["seed"],
        )
        found = self.model.generate([prompt], sampling)[0]
        usage = {"prompt_tokens": found.prompt_tokens}
        tokens = list(zip(found.tokens, found.logprobs, found.top_logprobs, strict=True))
        if chat:
            content = [
                {"token": t, "logprob": p, "top_logprobs": [{"token": "best", "logprob": top}]} for t, p, top in tokens
            ]
            message = {"role": "assistant", "content": found.text}
            return {"choices": [{"message": message, "logprobs": {"content": content}}], "usage": usage}
        logprobs = {
            "tokens": [t for t, _, _ in tokens],
            "token_logprobs": [p for _, p, _ in tokens],
            "top_logprobs": [{"best": top} for _, _, top in tokens],
        }
        return {"choices": [{"text": found.text, "logprobs": logprobs}], "usage": usage}

    def echoed(self, text):
        import torch

        tokenizer = self.model.tokenizer
        encoded = tokenizer(text, return_offsets_mapping=True)
        with torch.no_grad():
            logp = self.model.model(torch.tensor([encoded["input_ids"]])).logits[0].log_softmax(-1)
        ids, places = encoded["input_ids"], encoded["offset_mapping"]
        return {
            "tokens": [text[a:b] for a, b in places],
            "text_offset": [a for a, _ in places],
            "token_logprobs": [None] + [float(logp[t - 1, ids[t]]) for t in range(1, len(ids))],
        }
