"""Write .dvc/plots.html, the page of `dvc plots show`, with its scripts inside: it works with no network.

DVC's own page loads vega, vega-lite and vega-embed from a CDN. The versions are read from the installed
DVC, the packages come from the npm registry through `npm pack`, so this needs npm; the page does not.
Run it again after an upgrade of DVC (tests/contract/test_dvc_yaml.py says when).
"""

from __future__ import annotations

import json
import re
import subprocess
import tarfile
import tempfile
from pathlib import Path

from dvc_render.vega import VegaRenderer

PAGE = Path(__file__).resolve().parent.parent / ".dvc" / "plots.html"
CDN = re.compile(r"https://cdn\.jsdelivr\.net/npm/([a-z-]+)@([0-9.]+)")
TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="connect-src 'none'">
{refresh_tag}
<title>macflow plots</title>
<link rel="icon" href="data:,">
<style>
body { font-family: system-ui, sans-serif; margin: 2rem; }
body > div { display: inline-block; margin: 0 1.5rem 1.5rem 0; vertical-align: top; }
img { max-width: 24rem; }
</style>
SCRIPTS
</head>
<body>
{plot_divs}
</body>
</html>
"""
PLACEHOLDERS = ("{refresh_tag}", "{plot_divs}", "{scripts}")


def main() -> None:
    """Download the three packages and write the page."""
    with tempfile.TemporaryDirectory() as folder:
        blocks = [_block(Path(folder), name, version) for name, version in wanted_versions()]
    PAGE.write_text(TEMPLATE.replace("SCRIPTS", "\n".join(blocks)), encoding="utf-8")
    print(f"{PAGE}: {PAGE.stat().st_size / 1e6:.2f} MB")


def wanted_versions() -> list[tuple[str, str]]:
    """Return the (package, version) pairs of the installed DVC's own page, in its order."""
    return CDN.findall(VegaRenderer.SCRIPTS)


def _block(folder: Path, name: str, version: str) -> str:
    packed = subprocess.run(
        ["npm", "pack", "--json", f"{name}@{version}"], cwd=folder, capture_output=True, text=True, check=True
    )
    with tarfile.open(folder / json.loads(packed.stdout)[0]["filename"]) as archive:
        script = _member(archive, f"package/build/{name}.min.js")
        licence = _member(archive, "package/LICENSE")
    # Its source map is not here to be found.
    script = re.sub(r"\n?//# sourceMappingURL=\S+\s*$", "", script)
    if "</script" in script or any(placeholder in script for placeholder in PLACEHOLDERS):
        raise ValueError(f"{name}@{version} cannot stand in the page as it is")
    return f"<!-- {name} {version}\n\n{licence.strip()}\n-->\n<script>\n{script}\n</script>"


def _member(archive: tarfile.TarFile, name: str) -> str:
    file = archive.extractfile(name)
    if file is None:
        raise FileNotFoundError(name)
    return file.read().decode("utf-8")


if __name__ == "__main__":
    main()
