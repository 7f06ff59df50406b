"""Tests ingest against its /openapi.json with schemathesis. Settings: schemathesis.toml."""

import json
import os
import pathlib

from support import TOOLS, run

HERE = pathlib.Path(__file__).resolve().parent
TIMEOUT_S = 1200
MIN_CASES = 1000


def test_ingest_conforms_to_its_openapi_document(likes_url, tmp_path):
    report = tmp_path / "report.json"
    ended = run(
        TOOLS / "schemathesis",
        *("--config-file", HERE / "schemathesis.toml"),
        *("run", f"{likes_url}/openapi.json", "--url", likes_url),
        *("--report", "json", "--report-json-path", report),
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(HERE), "PYTHONDONTWRITEBYTECODE": "1"},
        timeout=TIMEOUT_S,
    )
    text = "\n".join(line[:2000] for line in (ended.stdout + ended.stderr).splitlines())
    assert ended.returncode == 0, text
    assert json.loads(report.read_text())["test_cases"]["generated"] >= MIN_CASES
