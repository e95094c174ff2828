"""schemathesis: requests that are made up from /openapi.json, right and wrong ones. No answer is a
5xx, and every answer has the form that the description says."""

import pathlib
import subprocess
import sys

CHECKS = ",".join(["not_a_server_error", "response_schema_conformance", "content_type_conformance",
                   "status_code_conformance"])


def check(server):
    # A server of its own: it draws whatever is thought up, and nobody waits for it.
    folder = server.folder / "schemathesis"
    folder.mkdir()
    own = type(server)(server.program, folder)
    try:
        subprocess.run(
            [pathlib.Path(sys.executable).parent / "schemathesis", "run", own.url + "/openapi.json",
             "--checks", CHECKS, "--max-examples", "8", "--seed", "7", "--request-timeout", "60"],
            check=True, cwd=folder)
    finally:
        assert own.end() == 0
