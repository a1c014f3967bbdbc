"""`python -m pyreactor models`, in a form that takes a few seconds."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from pyreactor import model_comparison
from pyreactor.models import MODELS

ROOT = pathlib.Path(__file__).resolve().parents[1]


def models(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "pyreactor", "models", *arguments],
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.time_limit(60)
def test_models_are_measured_and_reported():
    names = ["leader-followers", "half-sync-half-reactive, simulated Proactor", "proactor"]
    only = [word for name in names for word in ("--only", name)]
    done = models("--seconds", "0.5", "--connections", "8", "--workers", "2", "--json", *only)
    assert done.returncode == 0, done.stderr
    assert "[3/3]" in done.stderr  # the progress
    result = json.loads(done.stdout)
    assert sorted(model["name"] for model in result["models"]) == sorted(names)
    for model in result["models"]:
        for part in ("quick", "mixed"):
            figures = model[part]
            assert figures["requests"] > 0
            assert figures["cpu_us"] > 0
            assert 0 < figures["p50_ms"] <= figures["p99_ms"]
            assert figures["threads"] == figures["threads_before"] <= 4  # none for a connection
    text = model_comparison.report(result)
    assert all(f"| {name} |" in text for name in names)
    assert "CPython" in text


def test_every_model_is_compared():
    compared = {variant.dispatcher for variant in model_comparison.variants()}
    assert compared == set(MODELS)


def test_the_statement_follows_from_the_figures():
    def model(name, cpu_us, tail_ms, threads=4):
        return {
            "name": name,
            "quick": {"cpu_us": cpu_us, "threads_before": 4},
            "mixed": {"quick_p99_ms": tail_ms, "threads": threads},
        }

    result = {
        "load_average": 0.1,
        "cpus": 2,
        "models": [model("a", 10.0, 50.0), model("b", 11.0, 5.0), model("c", 30.0, 14.0, 9)],
    }
    said = model_comparison.what_fits(result)
    assert "the least CPU time: a; b." in said
    assert "wait least under b." in said
    assert "Under a they wait 3 times as long" in said
    assert "grown under c" in said
    assert "busy" not in said
    refused = {**result, "left_out": {"proactor": "there is no io_uring"}}
    assert "Left out: proactor, since there is no io_uring." in model_comparison.what_fits(refused)
    assert "busy" in model_comparison.what_fits({**result, "load_average": 9.0})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--connections", "0"], "at least one connection"),
        (["--workers", "0"], "must be a thread"),
        (["--only", "rector"], "no model 'rector'"),
        (["--fast"], "unrecognized"),
    ],
)
def test_bad_arguments_are_usage_errors(arguments, message):
    done = models(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
