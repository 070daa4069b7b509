"""Checks wheels against their hashes and unpacks them together: one call per build, stdlib only.

usage: unpack.py DEST WHEEL=SHA256 [WHEEL=SHA256 ...]

Exit 3 and the name of the file on stdout when a hash differs.
"""

import hashlib
import sys
import zipfile


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def main(dest, wheels):
    pairs = [wheel.rsplit("=", 1) for wheel in wheels]
    for path, expected in pairs:
        found = sha256(path)
        if found != expected:
            print(f"{path} has SHA-256 {found}, expected {expected}")
            return 3
    for path, _ in pairs:
        with zipfile.ZipFile(path) as archive:
            archive.extractall(dest)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
