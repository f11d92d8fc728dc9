"""Schemathesis against the service's own OpenAPI document: whatever is sent, no 5xx, and answers as documented.

Longer, against a service that runs: `schemathesis run http://127.0.0.1:8080/openapi.json --max-examples 2000`
with the options below.
"""

from __future__ import annotations

import subprocess
import sys

from service_process import KEY, ServiceProcess

# Not "positive_data_acceptance": that k <= k_ann, or that an id is of the catalogue's type, no schema can say.
CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
]


def test_no_request_breaks_the_service(service: ServiceProcess) -> None:
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{service.url}/openapi.json", "--no-color"]
    command += ["--checks", ",".join(CHECKS), "--phases", "examples,fuzzing", "--max-examples", "25", "--seed", "1"]
    command += ["--generation-database", "none", "-H", f"X-API-Key: {KEY}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in service.log.read_text()
