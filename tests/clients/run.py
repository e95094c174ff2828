#!/usr/bin/env python3
"""Runs the clients in this folder against a server: `run.py PROGRAM [NAME ...]`.

Every file `NAME_client.py` has a function `check(server)`. `server.url` is the address of a running
server with the embedded model. `server.drawn(arguments)` is the file that the command line writes
for the same request, which the client's image must equal bit by bit.
"""

import importlib
import pathlib
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
PATIENCE = 120


class Server:
    def __init__(self, program, folder, *arguments):
        self.program, self.folder = program, pathlib.Path(folder)
        self.log = []
        command = [program, "serve", "--no-config", "--listen", "127.0.0.1:0", "--device", "cpu",
                   "--no-cache", "--data", str(self.folder / "data"), *arguments]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.url = None
        listening = threading.Event()

        def read():
            for line in self.process.stderr:
                self.log.append(line)
                if "listening on " in line:
                    self.url = line.split("listening on ")[1].strip()
                    listening.set()
            listening.set()

        threading.Thread(target=read, daemon=True).start()
        listening.wait(PATIENCE)
        if not self.url:
            sys.exit("the server did not start:\n" + "".join(self.log))
        self.host, self.port = self.url.split("//")[1].split(":")

    def drawn(self, *arguments):
        """The bytes of the file that the command line writes."""
        path = self.folder / "reference.png"
        command = [self.program, "--no-config", "--device", "cpu", "--no-cache", "-q", "-o", str(path)]
        subprocess.run([*command, *arguments], check=True)
        return path.read_bytes()

    def end(self):
        self.process.terminate()
        return self.process.wait(PATIENCE)


def main():
    program = str(pathlib.Path(sys.argv[1]).resolve())
    names = sys.argv[2:] or sorted(f.stem.removesuffix("_client") for f in HERE.glob("*_client.py"))
    sys.path.insert(0, str(HERE))
    with tempfile.TemporaryDirectory() as folder:
        server = Server(program, folder)
        try:
            for name in names:
                begun = time.monotonic()
                importlib.import_module(f"{name}_client").check(server)
                print(f"{name}: passed in {time.monotonic() - begun:.1f} s")
        except BaseException:
            print("".join(server.log[-40:]), file=sys.stderr)
            raise
        finally:
            code = server.end()
        assert code == 0, f"the server ended with {code}"


if __name__ == "__main__":
    main()
