"""Apptainer, buildah and mmdebstrap on a Debian machine: installed by apt where they are absent.

Debian's stable releases have no Apptainer. Where apt offers none, the package of Debian's unstable release is fetched
by the machine's own apt, from the mirror it uses anyway, and unpacked with the C library it needs into a folder of its
own. The machine's own C library and apt sources stay as they are. Needs root.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

PACKAGES = {"buildah": "buildah", "mmdebstrap": "mmdebstrap", "unshare": "util-linux"}
# What Apptainer runs, and what makes its programs use another C library.
BESIDE = {"patchelf": "patchelf", "mksquashfs": "squashfs-tools", "squashfuse": "squashfuse", "newuidmap": "uidmap"}
BESIDE |= {"fuse2fs": "fuse2fs", "fuse-overlayfs": "fuse-overlayfs", "faked": "fakeroot"}
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
LIBRARIES = ["libc6", "libseccomp2", "libsqlite3-0"]


class Absent(Exception):
    """Why a tool cannot be had here."""


def install(folder: Path) -> Path:
    """Install what is absent, Apptainer perhaps into `folder`; the folder that holds it. Raises Absent."""
    if os.geteuid() != 0:
        raise Absent("building base images and unpacking Apptainer needs root")
    if not shutil.which("apt-get"):
        raise Absent("the tools are installed by apt, which is not here")
    _apt([package for tool, package in PACKAGES.items() if not shutil.which(tool)])
    for path in [Path("/etc/subuid"), Path("/etc/subgid")]:  # `--fakeroot` maps user numbers by these
        lines = path.read_text(encoding="utf-8") if path.exists() else ""
        if not any(line.startswith("root:") for line in lines.splitlines()):
            path.write_text(f"{lines}root:1000000:65536\n", encoding="utf-8")
    fuse = Path("/dev/fuse")
    if fuse.is_char_device():
        fuse.chmod(0o666)  # as on ordinary systems: users mount images
    found = shutil.which("apptainer")
    if found:
        return Path(found).parent
    if re.search(r"Candidate: [^(\s]", _output("apt-cache", "policy", "apptainer")):
        _apt(["apptainer"])
        return Path(shutil.which("apptainer")).parent
    if not Path(KEYS).exists():
        raise Absent("apt has no Apptainer here: install it as apptainer.org says")
    _apt([package for tool, package in BESIDE.items() if not shutil.which(tool)])
    _unpack(folder)
    return folder / "usr/bin"


def _apt(packages: Sequence[str]) -> None:
    if packages:
        _output("apt-get", "update", "-qq")
        _output("apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages)


def _output(*command: str, cwd: Path | None = None) -> str:
    """What a command prints; raises Absent if it fails."""
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(command, env=quiet, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise Absent(f"{' '.join(command)[:80]} failed: {done.stderr.strip()[-300:]}")
    return done.stdout


def _unpack(folder: Path) -> None:
    """Debian unstable's Apptainer in `folder`, with the C library it was built for."""
    packages = _fetch(folder / "packages", ["apptainer", *LIBRARIES])
    for name, path in packages.items():
        _output("dpkg-deb", "-x", str(path), str(folder if name == "apptainer" else folder / "beside"))
    libraries = folder / "libraries"
    libraries.mkdir()
    for path in (folder / "beside/usr/lib").glob("*-linux-gnu/*.so*"):
        shutil.copy2(path, libraries)
    loader = next(libraries.glob("ld-linux*.so.*"))
    for program in [folder / "usr/bin/apptainer", *folder.glob("usr/lib/*-linux-gnu/apptainer/bin/starter")]:
        options = ["--set-interpreter", str(loader), "--force-rpath", "--set-rpath", str(libraries)]
        _output("patchelf", *options, str(program))
    # It looks for its settings and its folder of sessions from where its programs lie.
    for place in [folder / "usr", folder / "usr/lib"]:
        (place / "var/lib/apptainer/mnt/session").mkdir(parents=True)
        (place / "etc").symlink_to(folder / "etc")
    settings = folder / "etc/apptainer/apptainer.conf"
    # Root of a restricted machine lacks capabilities that Apptainer would ask for.
    text = settings.read_text(encoding="utf-8").replace("capabilities = full", "capabilities = no")
    settings.write_text(text, encoding="utf-8")
    shutil.rmtree(folder / "packages")
    shutil.rmtree(folder / "beside")


def _fetch(folder: Path, names: list[str]) -> dict[str, Path]:
    """Packages of Debian unstable, through lists of apt's own in `folder`."""
    targets = _output("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages").split()
    mirrors = [uri for uri in targets if uri.rstrip("/").endswith("/debian")]
    if not mirrors:
        raise Absent("apt has no Apptainer here, and this is no Debian: install it as apptainer.org says")
    for part in ["lists/partial", "cache/archives/partial"]:
        (folder / part).mkdir(parents=True)
    folder.chmod(0o755)
    (folder / "sources.list").write_text(f"deb [signed-by={KEYS}] {mirrors[0]} sid main\n", encoding="utf-8")
    options = {"Dir::Etc::sourcelist": folder / "sources.list", "Dir::Etc::sourceparts": "-"}
    options |= {"Dir::Etc::preferencesparts": "/dev/null", "Dir::State::lists": folder / "lists"}
    options |= {"Dir::Cache": folder / "cache", "Acquire::Languages": "none", "APT::Sandbox::User": "root"}
    apt = ["apt-get", "-q", *(word for key, value in options.items() for word in ("-o", f"{key}={value}"))]
    _output(*apt, "update")
    _output(*apt, "download", *(f"{name}/sid" for name in names), cwd=folder)
    found = {name: next(folder.glob(f"{name}_*.deb"), None) for name in names}
    missing = [name for name, path in found.items() if path is None]
    if missing:
        raise Absent(f"Debian unstable gave no {', '.join(missing)}")
    return found
