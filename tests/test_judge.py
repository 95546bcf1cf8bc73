"""The host judge against a server on this machine."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest

from agemem_jax.envs import judge as judge_module
from agemem_jax.envs.judge import SCORE, Judge


@pytest.fixture
def endpoint(monkeypatch):
    """Starts servers; `endpoint(answer_of)` gives the URL of one that replies (status, text) to a request's body."""
    monkeypatch.setattr(judge_module.time, "sleep", lambda seconds: None)
    servers = []

    def start(answer_of):
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, text = answer_of(self.path, body, self.headers)
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *args):
                pass

        servers.append(HTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/v1"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def completion(text):
    return 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})


def test_scores_come_back_in_order(endpoint, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "key")

    def answer_of(path, body, headers):
        assert path == "/v1/chat/completions" and body["model"] == "grader" and body["temperature"] == 0
        assert headers["Authorization"] == "Bearer key"
        user = body["messages"][1]["content"]
        assert "Question: who" in user and "Reference answer: Ann" in user
        return completion("1" if "Candidate answer: Ann" in user else "<think>0 or 1?</think>\nScore: 0.25.")

    scores = Judge(endpoint(answer_of), "grader").score(["who"] * 4, ["Ann"] * 4, ["Bob", "Ann", "", "Ann"])
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, [0.25, 1.0, 0.0, 1.0])


@pytest.mark.parametrize(
    "reply, grade",
    [("0.7", "0.7"), ("**1.0**", "1.0"), (" .5\n", ".5"), ("0.8/1", "0.8"), ("Of 2 facts one is right: 0.5", "0.5"),
     ("8/10", None), ("1/10", None), ("-1", None), ("10", None), ("85%", None), ("good", None)],
)  # fmt: skip
def test_grades_in_replies(reply, grade):
    found = SCORE.search(reply)
    assert (found and found.group()) == grade


def test_a_failing_server_is_asked_again(endpoint):
    tries = []

    def answer_of(path, body, headers):
        tries.append(1)
        return (503, "busy") if len(tries) < 3 else completion("0.5")

    np.testing.assert_allclose(Judge(endpoint(answer_of), "m").score(["q"], ["g"], ["a"]), [0.5])
    assert len(tries) == 3


@pytest.mark.parametrize(
    "status, text, message",
    [(404, "no such model", "404.*reward.judge_model"), (500, "broken", "500"), (200, "hello", "no chat completion"),
     (*completion("very good"), "without a grade")],
)  # fmt: skip
def test_errors_say_what_is_wrong(endpoint, status, text, message):
    with pytest.raises(RuntimeError, match=message):
        Judge(endpoint(lambda *request: (status, text)), "m").score(["q"], ["g"], ["a"])


def test_bad_arguments():
    with pytest.raises(ValueError, match="reward.judge is 'localhost'"):
        Judge("localhost", "m")
    with pytest.raises(ValueError, match="reward.judge_model is empty"):
        Judge("http://localhost/v1", "")
    with pytest.raises(ValueError, match="1 questions, 2 golds"):
        Judge("http://localhost/v1", "m").score(["q"], ["g", "g"], ["a"])
