"""`flux-fast remote` with a certificate of one's own: refused, and trusted with --ca-cert."""

import subprocess

from fal_client_client import proxy


def check(server):
    folder = server.folder / "remote"
    folder.mkdir()
    port, certificate = proxy(folder, lambda: int(server.port))
    image = folder / "fox.png"
    command = [server.program, "remote", f"https://localhost:{port}", "a fox", "--no-config", "-q",
               "--steps", "4", "--seed", "5", "-o", image]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 6 and "--ca-cert" in refused.stderr, refused
    trusted = subprocess.run([*command, "--ca-cert", certificate], capture_output=True, text=True)
    assert trusted.returncode == 0, trusted
    assert image.read_bytes() == server.drawn("a fox", "--steps", "4", "--seed", "5")
    command += ["--ca-cert", folder / "key.pem"]
    wrong = subprocess.run(command, capture_output=True, text=True)
    assert wrong.returncode == 2 and "no certificate" in wrong.stderr, wrong
