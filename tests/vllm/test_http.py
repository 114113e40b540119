"""Twenty requests at once over HTTP, some given up: every answer is the one it gets alone.

A state left in a slot by an aborted request, or shared by two, would change the tokens of another.
The scheduler is kept short of room, so that prompts are cut into chunks and requests wait.
"""

from __future__ import annotations

import http.client
import json
import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

REQUESTS, ABORTED, TOKENS = 20, 6, 16


@pytest.fixture(scope="module", params=["qwen3_5", "qwen3_next"])
def path(request, model):
    return model(request.param)


@pytest.fixture(scope="module")
def address(server, path):
    options = [
        "--max-num-seqs", "4", "--max-num-batched-tokens", "64", "--max-model-len", "512",
        "--no-enable-prefix-caching",
    ]  # fmt: skip
    return server(path, *options)


def post(address, prompt, *, give_up_after=None):
    """Tokens of the answer, streamed; the connection is closed after ``give_up_after`` chunks."""
    connection = http.client.HTTPConnection(*address, timeout=240)
    body = {
        "prompt": prompt,
        "max_tokens": TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "return_token_ids": True,
    }
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/completions", json.dumps(body), headers)
    response = connection.getresponse()
    assert response.status == 200, response.read()[:2000]
    tokens, chunks = [], 0
    while line := response.readline():
        text = line.decode().strip().removeprefix("data: ")
        if not text or text == "[DONE]":
            continue
        event = json.loads(text)
        assert "error" not in event, event
        tokens += event["choices"][0].get("token_ids") or []
        chunks += 1
        if chunks == give_up_after:
            break
    connection.close()
    return tokens


def test_concurrent_requests_answer_as_alone_and_as_transformers(address, path, run_script):
    rng = random.Random(17)
    prompts = [
        [rng.randrange(3, 512) for _ in range(rng.choice([1, 2, rng.randint(3, 300)]))]
        for _ in range(REQUESTS)
    ]
    arrivals = [rng.random() * 2 for _ in prompts]
    giving_up = dict.fromkeys(rng.sample(range(REQUESTS), ABORTED))
    giving_up = {number: rng.randint(1, 6) for number in giving_up}

    def one(number):
        time.sleep(arrivals[number])
        return post(address, prompts[number], give_up_after=giving_up.get(number))

    with ThreadPoolExecutor(REQUESTS) as pool:
        together = list(pool.map(one, range(REQUESTS)))
    alone = [post(address, prompt) for prompt in prompts]
    for number in range(REQUESTS):
        assert len(alone[number]) == TOKENS
        got = together[number]
        if number in giving_up:  # what came before it was given up
            assert got == alone[number][: len(got)]
        else:
            assert got == alone[number]

    sequences = list(zip(prompts, alone, strict=True))
    logprobs = run_script("reference.py", {"model": path, "sequences": sequences})["logprobs"]
    assert alone == [[row.index(max(row)) for row in rows] for rows in logprobs]
