"""A language model as judge of answers, over an OpenAI-compatible endpoint. Runs on the host."""

import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

INSTRUCTION = (
    "You grade answers to questions. You are given a question, its reference answer and a candidate answer. Grade only "
    "whether the candidate gives the same information as the reference; wording, order and extra detail that does not "
    "contradict it do not matter. 1 means fully right, 0 means wrong or missing, values between mean partly right. "
    "Reply with one number from 0 to 1 and nothing else."
)
SCORE = re.compile(r"(?<![\w./-])(?:0(?:\.\d+)?|1(?:\.0+)?|\.\d+)(?![\w%]|\.\d|\s*/\s*(?!1\b))")
ATTEMPTS = 3
PARALLEL = 8  # requests in flight


class Judge:
    """Grades answers with a chat model.

    Args:
      url: base URL of the endpoint, e.g. "http://localhost:8000/v1" (config.reward.judge). OPENAI_API_KEY, if it is set
        in the environment, is sent along.
      model: the model's name there (config.reward.judge_model).
      timeout: seconds for one request.

    Raises:
      ValueError: `url` is not an HTTP address, or `model` is empty.
    """

    def __init__(self, url: str, model: str, timeout: float = 60.0):
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"reward.judge is {url!r}; give an address such as http://localhost:8000/v1")
        if not model:
            raise ValueError("reward.judge_model is empty; give the name of a model that the endpoint serves")
        self.url = url.rstrip("/") + "/chat/completions"
        self.model = model
        self.timeout = timeout

    def score(self, questions: Sequence[str], golds: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        """Grades of B answers, `[B]` float32 in [0, 1]. An empty answer gets 0 and is not sent.

        Raises:
          ValueError: the three sequences differ in length.
          RuntimeError: the endpoint cannot be reached, refuses, or replies without a grade.
        """
        if not len(questions) == len(golds) == len(answers):
            raise ValueError(f"{len(questions)} questions, {len(golds)} golds and {len(answers)} answers; give as many")
        with ThreadPoolExecutor(PARALLEL) as pool:
            return np.array(list(pool.map(self._score_one, questions, golds, answers)), np.float32)

    def _score_one(self, question: str, gold: str, answer: str) -> float:
        if not answer.strip():
            return 0.0
        content = f"Question: {question}\nReference answer: {gold}\nCandidate answer: {answer}"
        messages = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": content}]
        reply = self._complete(messages)
        found = SCORE.search(reply.rpartition("</think>")[2])
        if found is None:
            raise RuntimeError(f"the judge at {self.url} replied {reply[:200]!r}, without a grade in [0, 1]")
        return float(found.group())

    def _complete(self, messages: list[dict]) -> str:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        body = json.dumps({"model": self.model, "messages": messages, "temperature": 0}).encode()
        request = urllib.request.Request(self.url, body, headers)
        for attempt in range(ATTEMPTS):
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as response:
                    raw = response.read()
                break
            except OSError as error:  # HTTPError, URLError and timeouts are all of this kind
                refused = isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code != 429
                if refused or attempt == ATTEMPTS - 1:
                    hint = "check reward.judge and reward.judge_model"
                    raise RuntimeError(f"the judge at {self.url} failed: {error}; {hint}") from error
                time.sleep(0.2 * 4**attempt)
        try:
            return json.loads(raw)["choices"][0]["message"]["content"] or ""
        except (ValueError, LookupError, TypeError) as error:
            raise RuntimeError(f"{self.url} replied {raw[:200]!r}, which is no chat completion") from error
