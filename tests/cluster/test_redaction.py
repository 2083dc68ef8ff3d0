"""No secret gets out with a line, whether this process knows it or it only looks like one."""

from __future__ import annotations

import pytest

from cluster.redaction import Redaction


@pytest.mark.parametrize(
    "line",
    [
        "connecting with s3cr3t-value-9",
        "postgresql://me:hunter2hunter2@db/mlflow",
        "key AKIAABCDEFGHIJKLMNOP is used",
        "Authorization: Bearer abc.def-ghi_jkl",
        "HF_TOKEN=hf_abcdefghijklmnopqrstuv",
        'request {"aws_secret_access_key": "hush/hush+hush"}',
    ],
)
def test_a_secret_is_taken_out_and_the_rest_is_kept(line):
    told = Redaction({"AWS_SECRET_ACCESS_KEY": "s3cr3t-value-9", "RAY_AUTH_TOKEN_PATH": "/home/ray.token"})(line)
    secrets = ("s3cr3t", "hunter2", "AKIAABC", "abc.def", "hf_abc", "hush")
    assert "***" in told and not any(secret in told for secret in secrets) and told.split()[0][:3] == line[:3]


def test_a_plain_line_stays_as_it_is():
    line = "step 12: 4096 tokens, token_rate 12.5 at http://127.0.0.1:8265/#/jobs/1"
    assert Redaction({"API_KEY": "short"})(line) == line
