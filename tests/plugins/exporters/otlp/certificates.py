"""Certificates for tests, made by openssl: an authority, and what it signs."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.programs import need

EC = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"


class Authority:
    """A certificate authority whose files are in `folder`; its own certificate is `ca`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.ca = folder / "ca.pem"
        self._run(f"req -x509 {EC} -days 2 -subj /CN=authority -keyout ca.key -out ca.pem")

    def sign(self, name: str, subject: str = "IP:127.0.0.1", days: int = 2) -> tuple[Path, Path]:
        """A certificate for that address, and its key. One of -1 days has expired."""
        self._run(f"req {EC} -subj /CN={name} -keyout {name}.key -out {name}.csr")
        (self.folder / f"{name}.ext").write_text(f"subjectAltName={subject}\n")
        self._run(
            f"x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial"
            f" -days {days} -extfile {name}.ext -out {name}.pem"
        )
        return self.folder / f"{name}.pem", self.folder / f"{name}.key"

    def _run(self, words: str) -> None:
        subprocess.run([need("openssl"), *words.split()], cwd=self.folder, check=True, capture_output=True)
