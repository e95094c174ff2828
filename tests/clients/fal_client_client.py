"""fal's client, which only speaks https: a proxy in this process has the certificate."""

import base64
import os
import socket
import ssl
import subprocess
import threading


def proxy(folder, port):
    """Listens with TLS, and forwards to `port`, a function. Returns its own port, and the
    certificate of the authority that has signed its own."""
    key, request = folder / "key.pem", folder / "request.pem"
    certificate, authority = folder / "certificate.pem", folder / "authority.pem"
    authority_key, extensions = folder / "authority-key.pem", folder / "extensions"
    extensions.write_text("subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n")
    for command in [
            ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout",
             authority_key, "-out", authority, "-subj", "/CN=tests"],
            ["req", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", request, "-subj",
             "/CN=localhost"],
            ["x509", "-req", "-in", request, "-CA", authority, "-CAkey", authority_key,
             "-CAcreateserial", "-days", "2", "-extfile", extensions, "-out", certificate]]:
        subprocess.run(["openssl", *command], check=True, stderr=subprocess.DEVNULL)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    listener = socket.create_server(("127.0.0.1", 0))

    def copy(source, target):
        try:
            while data := source.recv(1 << 16):
                target.sendall(data)
        except OSError:
            pass
        finally:
            for end in (source, target):
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass

    def serve():
        while True:
            plain, _ = listener.accept()
            try:
                client = context.wrap_socket(plain, server_side=True)
            except (OSError, ssl.SSLError):
                continue
            upstream = socket.create_connection(("127.0.0.1", port()))
            threading.Thread(target=copy, args=(client, upstream), daemon=True).start()
            threading.Thread(target=copy, args=(upstream, client), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    return listener.getsockname()[1], authority


def check(server):
    # The links that the client follows must be https too, so it gets a server of its own.
    folder = server.folder / "fal"
    folder.mkdir()
    servers = []
    port, certificate = proxy(folder, lambda: int(servers[0].port))
    host = f"localhost:{port}"
    servers.append(type(server)(server.program, folder, "--public-url", f"https://{host}"))
    os.environ |= {
        "SSL_CERT_FILE": str(certificate), "FAL_KEY": "none", "FAL_RUN_HOST": f"{host}/fal/run",
        "FAL_QUEUE_RUN_HOST": f"{host}/fal/queue",
    }
    import fal_client

    try:
        arguments = {"prompt": "a fox", "num_inference_steps": 4, "seed": 5, "sync_mode": True,
                     "image_size": {"width": 128, "height": 128}, "output_format": "png"}
        reference = server.drawn("a fox", "--seed", "5", "--steps", "4")
        read = lambda answer: base64.b64decode(answer["images"][0]["url"].split(",")[1])
        assert read(fal_client.run("fal-ai/flux-tiny", arguments=arguments)) == reference
        assert read(fal_client.subscribe("fal-ai/flux-tiny", arguments=arguments)) == reference
        handle = fal_client.submit(
            "fal-ai/flux-tiny", arguments=arguments | {"num_inference_steps": 1000, "num_images": 8})
        handle.cancel()
        try:
            fal_client.run("fal-ai/flux-tiny", arguments={"prompt": "x", "image_size": "huge"})
        except fal_client.FalClientHTTPError as error:
            assert "image_size" in str(error), error
        else:
            raise AssertionError("an unknown size was not refused")
    finally:
        assert servers[0].end() == 0
