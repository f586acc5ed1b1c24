"""Write a Homebrew formula for built wheels: `python tools/formula.py HOMEPAGE URL-OF-THE-WHEELS [dist] > freehold.rb`.

The formula installs the stable-ABI wheel of the machine's platform, whose digest it holds, into a Python of its own,
and gives Homebrew the completions that the wheel carries. Knows wheels' names and digests; uploads nothing.
Path: make wheels -> dist/*.whl -> main -> freehold.rb of a tap
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

PLATFORMS = {
    ("macos", "arm"): "macosx_11_0_arm64",
    ("macos", "intel"): "macosx_11_0_x86_64",
    ("linux", "arm"): "manylinux_2_28_aarch64",
    ("linux", "intel"): "manylinux_2_28_x86_64",
}
FORMULA = """\
class Freehold < Formula
  desc "Own the language models you use: choose, run and serve open-weight models"
  homepage "{homepage}"
  version "{version}"
  license "Apache-2.0"

  depends_on "python@3.13"

{platforms}
  def install
    system "python3.13", "-m", "venv", libexec
    system libexec/"bin/python", "-m", "pip", "install", "--no-input", *Dir["*.whl"]
    bin.install_symlink libexec/"bin/freehold"
    bash_completion.install_symlink libexec/"share/bash-completion/completions/freehold"
    zsh_completion.install_symlink libexec/"share/zsh/site-functions/_freehold"
    fish_completion.install_symlink libexec/"share/fish/vendor_completions.d/freehold.fish"
  end

  service do
    run [opt_bin/"freehold", "serve"]
    keep_alive crashed: true
  end

  test do
    assert_match version.to_s, shell_output("#{{bin}}/freehold --version")
    system bin/"freehold", "doctor"
  end
end
"""
PART = """\
  on_{system} do
    on_{processor} do
      url "{url}/{name}", using: :nounzip
      sha256 "{digest}"
    end
  end
"""


def formula(homepage: str, url: str, folder: Path) -> str:
    """Return the formula for the wheels of a folder. Raises SystemExit where one of a platform is missing."""
    parts, versions = [], set()
    for (system, processor), platform in PLATFORMS.items():
        found = sorted(folder.glob(f"freehold-*-cp312-abi3-{platform}.whl"))
        if len(found) != 1:
            raise SystemExit(f"error: {folder} has {len(found)} stable-ABI wheels for {platform}, not 1")
        versions.add(found[0].name.split("-")[1])
        digest = hashlib.sha256(found[0].read_bytes()).hexdigest()
        named = {"system": system, "processor": processor, "url": url.rstrip("/"), "name": found[0].name}
        parts.append(PART.format(**named, digest=digest))
    if len(versions) != 1:
        raise SystemExit(
            f"error: {folder} has wheels of {len(versions)} versions: {', '.join(sorted(versions))}"
        )
    return FORMULA.format(homepage=homepage, version=versions.pop(), platforms="\n".join(parts))


def main(arguments: list[str]) -> int:
    """Print the formula."""
    if len(arguments) not in (2, 3):
        print("usage: python tools/formula.py HOMEPAGE URL [FOLDER]", file=sys.stderr)
        return 2
    print(formula(*arguments[:2], Path(arguments[2] if len(arguments) == 3 else "dist")), end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
