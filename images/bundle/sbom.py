# SPDX-License-Identifier: MIT
"""The bill of materials of a bundle, as an SPDX 2.3 document (JSON): versions, licences, sources.

Each part is an SPDX package; files are not listed, as the manifest has them. Licences are those that the
parts declare; a licence that is not an SPDX expression is quoted in a comment. The same parts give the same
bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

_NONE = "NOASSERTION"
_CREATED = "2000-01-01T00:00:00Z"
_EXPRESSION = re.compile(
    r"[A-Za-z0-9.-]+\+?( WITH [A-Za-z0-9.-]+)?( (AND|OR) [A-Za-z0-9.-]+\+?( WITH [A-Za-z0-9.-]+)?)*$"
)
# Licence names that packages declare in place of an SPDX identifier.
_IDENTIFIERS = {
    "Apache Software License": "Apache-2.0", "Apache 2.0": "Apache-2.0", "Expat": "MIT",
    "MIT License": "MIT", "BSD License": "BSD-3-Clause", "GPL-2": "GPL-2.0-only",
    "GPL-2+": "GPL-2.0-or-later", "LGPL-2.1": "LGPL-2.1-only", "LGPL-2.1+": "LGPL-2.1-or-later",
    "BSD-3-clause": "BSD-3-Clause", "BSD-2-clause": "BSD-2-Clause", "zlib": "Zlib",
}  # fmt: skip


@dataclass(frozen=True)
class Part:
    """One component of a bundle.

    Attributes:
        kind: ``deb``, ``pypi`` or ``generic``: the type of its package URL (purl).
        sha256: of the file that it was distributed as; empty if it was built here.
        licence: as the part declares it; empty if it declares none.
        source: where its source is, in words.
    """

    name: str
    version: str
    kind: str
    licence: str = ""
    sha256: str = ""
    source: str = ""

    def purl(self) -> str:
        """Its package URL."""
        space = "debian/" if self.kind == "deb" else ""
        tail = "?arch=arm64" if self.kind == "deb" else ""
        name, version = (quote(text, safe="+.-") for text in (self.name, self.version))
        return f"pkg:{self.kind}/{space}{name}@{version}{tail}"


def document(board: str, parts: Sequence[Part]) -> bytes:
    """Return the SPDX document of a bundle for a board."""
    packages = [_package(part, number) for number, part in enumerate(parts, 1)]
    root: dict[str, Any] = {
        "SPDXID": "SPDXRef-bundle",
        "name": f"npu-bsp-bundle-{board}",
        "downloadLocation": _NONE,
        "filesAnalyzed": False,
        "licenseConcluded": _NONE,
        "licenseDeclared": _NONE,
        "copyrightText": _NONE,
        "primaryPackagePurpose": "OPERATING-SYSTEM",
    }
    relationships = [_relation("SPDXRef-DOCUMENT", "DESCRIBES", "SPDXRef-bundle")]
    relationships += [
        _relation("SPDXRef-bundle", "CONTAINS", package["SPDXID"]) for package in packages
    ]
    digest = hashlib.sha256(json.dumps([board, packages]).encode()).hexdigest()
    content = {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": f"npu-bsp-bundle-{board}",
        "documentNamespace": f"https://spdx.org/spdxdocs/npu-bsp-{board}-{digest}",
        "creationInfo": {
            # A constant, not the time of the build: the same parts give the same bytes.
            "created": _CREATED,
            "creators": ["Tool: npu-bsp"],
        },
        "packages": [root, *packages],
        "relationships": relationships,
    }
    return json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n"


def _package(part: Part, number: int) -> dict[str, Any]:
    licence = expression(part.licence)
    package: dict[str, Any] = {
        "SPDXID": f"SPDXRef-{number}-{re.sub('[^A-Za-z0-9.-]', '-', part.name)}",
        "name": part.name,
        "versionInfo": part.version,
        "downloadLocation": _NONE,
        "filesAnalyzed": False,
        "licenseConcluded": _NONE,
        "licenseDeclared": licence,
        "copyrightText": _NONE,
        "externalRefs": [
            {
                "referenceCategory": "PACKAGE-MANAGER",
                "referenceType": "purl",
                "referenceLocator": part.purl(),
            }
        ],
    }
    if part.kind == "deb":
        package["supplier"] = "Organization: Debian"
    if part.sha256:
        package["checksums"] = [{"algorithm": "SHA256", "checksumValue": part.sha256}]
    if part.source:
        package["sourceInfo"] = part.source
    if part.licence and licence == _NONE:
        package["licenseComments"] = f"stated as: {part.licence}"
    return package


def expression(stated: str) -> str:
    """Return a declared licence as an SPDX expression, or NOASSERTION where it is not one."""
    stated = _IDENTIFIERS.get(stated.strip(), stated.strip())
    if not stated or not _EXPRESSION.match(stated):
        return _NONE
    names = re.split(r" (?:AND|OR|WITH) ", stated)
    return stated if all(_is_listed(name) for name in names) else _NONE


def _is_listed(name: str) -> bool:
    return name in _LISTED


# The identifiers of SPDX's licence list that our parts use; other licences are quoted in a comment.
_LISTED = frozenset(
    """
    0BSD Apache-2.0 BSD-2-Clause BSD-3-Clause BSL-1.0 CC0-1.0 GCC-exception-3.1 GPL-1.0-or-later
    GPL-2.0-only GPL-2.0-or-later GPL-3.0-only GPL-3.0-or-later ISC LGPL-2.0-or-later LGPL-2.1-only
    LGPL-2.1-or-later LGPL-3.0-only LGPL-3.0-or-later LLVM-exception Linux-syscall-note MIT MPL-2.0
    NCSA PSF-2.0 Python-2.0 Unlicense Zlib
    """.split()  # noqa: SIM905 # a list that long reads better so
)


def _relation(subject: str, kind: str, related: str) -> dict[str, str]:
    return {"spdxElementId": subject, "relationshipType": kind, "relatedSpdxElement": related}
