"""A local server that speaks the OpenAI wire format over one of our own models, and can be told to misbehave."""

import json
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rankwise.prompting.language_model import Sampling


@pytest.fixture
def interruptible():
    """An interrupt is one, also where the tests run in the background of a shell that ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Loopback:
    """``troubles``: what to do with the next requests, from the front: a status, a status with body and headers, a
    word of `Handler.trouble`; None is no trouble. ``echoes``: how the tokens of an echoed text are told."""

    def __init__(self, model=None, *, echoes="plain", delay=0.0):
        self.model, self.echoes, self.delay = model, echoes, delay
        self.requests, self.troubles, self.lock = [], [], threading.Lock()
        self.most = self.now = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.requests.append({"path": self.path, "headers": dict(self.headers), **body})
                    trouble = outer.troubles.pop(0) if outer.troubles else None
                    outer.now += 1
                    outer.most = max(outer.most, outer.now)
                try:
                    time.sleep(outer.delay)
                    self.answered(trouble, body)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True
                finally:
                    with outer.lock:
                        outer.now -= 1

            def answered(self, trouble, body):
                if trouble == "hang up":
                    self.close_connection = True
                elif trouble == "login page":
                    self.reply(200, b"<!DOCTYPE html><title>Sign in</title>", {"Content-Type": "text/html"})
                elif trouble == "cut short":
                    self.reply(200, b'{"choices": [{"te')
                elif trouble == "deep":
                    self.reply(200, b"[" * 200_000)
                elif trouble == "huge":
                    self.reply(200, b'{"a": "' + b"x" * 3_000_000 + b'"}')
                elif trouble == "slow body":
                    self.dripped(b'HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n{"a": 1', head=40)
                elif trouble == "slow head":
                    self.dripped(b"HTTP/1.1 200 OK\r\nX-Slow: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", head=10)
                elif isinstance(trouble, int):
                    self.reply(trouble, b'{"error": "trouble"}')
                elif isinstance(trouble, tuple):
                    self.reply(*trouble)
                else:
                    with outer.lock:  # one model, one request at a time
                        found = outer.answer(self.path, body)
                    self.reply(200, json.dumps(found).encode())

            def dripped(self, whole, *, head):
                self.close_connection = True
                self.wfile.write(whole[:head])
                for byte in whole[head:]:
                    time.sleep(0.1)
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()

            def reply(self, status, body, headers=None):
                self.send_response(status)
                headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *exc):
        self.server.shutdown()
        self.server.server_close()

    def answer(self, path, body):
        if self.model is None:
            return said("b")
        if body.get("echo") and self.echoes != "ignored":
            return self.echoed(body["prompt"])
        chat = path.endswith("/chat/completions")
        prompt = body["messages"] if chat else body["prompt"]
        sampling = Sampling(
            max_new_tokens=body.get("max_completion_tokens") or body["max_tokens"],
            temperature=body["temperature"],
            top_p=body.get("top_p", 1.0),
            stop=tuple(body.get("stop", ())),
            seed=body.get("seed", 0),
        )
        found = self.model.generate([prompt], sampling)[0]
        usage = {"prompt_tokens": found.prompt_tokens, "completion_tokens": len(found.tokens)}
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
        """The tokens of a text and of one more, as vLLM (``begin``), llama-cpp-python (``plain``) and others do."""
        import torch

        tokenizer = self.model.tokenizer
        encoded = tokenizer(text, return_offsets_mapping=True)
        ids, places = encoded["input_ids"], encoded["offset_mapping"]
        with torch.no_grad():
            logp = self.model.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        tokens = [text[a:b] for a, b in places]
        if self.echoes in ("bytes", "ids", "nothing"):
            tokens = [tokenizer.decode([i]) for i in ids]  # U+FFFD for a part of a character
        if self.echoes == "nothing":
            tokens = ["" if "\ufffd" in t else t for t in tokens]
        if self.echoes == "ids":
            tokens = [f"token_id:{i}" for i in ids]
        following = int(logp[-1].argmax())
        new = tokenizer.decode([following])
        found = [None] + [float(logp[t - 1, ids[t]]) for t in range(1, len(ids))] + [float(logp[-1].max())]
        tokens.append(new)
        read = len(ids)
        if self.echoes == "begin":
            tokens, found, read = ["<|begin_of_text|>", *tokens], [None, -17.0, *found[1:]], read + 1
        offsets = [sum(map(len, tokens[:i])) for i in range(len(tokens))]
        return {
            "choices": [
                {"text": text + new, "logprobs": {"tokens": tokens, "text_offset": offsets, "token_logprobs": found}}
            ],
            "usage": {"prompt_tokens": read, "completion_tokens": 1},
        }


def read(text):
    """An echo of a text, a token a character, and of one more."""
    logprobs = {"tokens": [*text, "!"], "token_logprobs": [None, *[-0.1] * len(text)]}
    usage = {"prompt_tokens": len(text), "completion_tokens": 1}
    return {"choices": [{"text": text + "!", "logprobs": logprobs}], "usage": usage}


def said(text):
    """A completion of one token."""
    logprobs = {"tokens": [text], "token_logprobs": [-0.5], "top_logprobs": [{text: -0.5}]}
    return {"choices": [{"text": text, "logprobs": logprobs}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
