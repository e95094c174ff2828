"""schemathesis: requests that are made up from /openapi.json, right and wrong ones. No answer is a
5xx but 503, which says when to come again, and every answer has the form that the description says.
"""

import pathlib
import subprocess
import sys

CHECKS = ",".join(["not_a_server_error", "response_schema_conformance", "content_type_conformance",
                   "status_code_conformance"])
CONFIG = """
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", "503"]
"""


def check(server):
    # A server of its own: it draws whatever is thought up, and nobody waits for it.
    folder = server.folder / "schemathesis"
    folder.mkdir()
    config = folder / "schemathesis.toml"
    config.write_text(CONFIG)
    own = type(server)(server.program, folder)
    try:
        program = pathlib.Path(sys.executable).parent / "schemathesis"
        subprocess.run(
            [program, "--config-file", config, "run", own.url + "/openapi.json", "--checks", CHECKS,
             "--phases", "coverage,fuzzing", "--max-examples", "5", "--workers", "2", "--seed", "7",
             "--request-timeout", "60"],
            check=True, cwd=folder)
    finally:
        assert own.end() == 0
