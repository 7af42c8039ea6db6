"""A real SLURM on this machine: munged, slurmctld and several slurmd, without systemd and without cgroups.

Needs root and Debian's packages `slurm-wlm` and `munge`, which `install` fetches. `Cluster.start` writes its own
configuration into /etc/slurm (what was there is put back by `stop`) and keeps everything else in one folder.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ["slurm-wlm", "munge"]
ETC = Path("/etc/slurm")
FILES = ["slurm.conf", "gres.conf", "cgroup.conf"]
HOSTS = Path("/etc/hosts")
MARK = "# nodes of a test cluster"
SBIN = f"{os.environ['PATH']}:/usr/sbin:/sbin"


def install() -> str | None:
    """Install SLURM if it is absent; the reason, if that is impossible."""
    if os.geteuid() != 0:
        return "starting a SLURM cluster needs root"
    if all(shutil.which(tool, path=SBIN) for tool in ["slurmctld", "slurmd", "munged"]):
        return None
    if not shutil.which("apt-get"):
        return "SLURM is installed by apt, which is not here"
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(["apt-get", *command], env=quiet, capture_output=True, text=True)
        if done.returncode:
            return f"apt-get {' '.join(command)} failed: {done.stderr.strip()[-300:]}"
    return None


@dataclass
class Cluster:
    """Nodes n1, n2, … on this machine; partition `cpu` yields to partition `urgent` (jobs are requeued)."""

    folder: Path
    nodes: int = 3
    cpus: int = 2
    memory: int = 16000  # MB a node claims; nothing enforces it
    gpus: int = 2  # a node's fake ones: device files that schedule and do nothing

    def start(self) -> None:
        for name in ["log", "run", "state", "spool", "dev", "kept"]:
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        ETC.mkdir(exist_ok=True)
        for path in [*(ETC / name for name in FILES), HOSTS]:
            if path.exists():
                shutil.copy2(path, self.folder / "kept" / path.name)
        names = " ".join(f"n{i + 1}" for i in range(self.nodes))
        HOSTS.write_text(f"{HOSTS.read_text()}127.0.0.1 {names} {MARK}\n")  # it may be a mount: not replaced
        for number in range(self.gpus):
            device = self.folder / "dev" / f"gpu{number}"
            if not device.exists():
                subprocess.run(["mknod", device, "c", "1", "3"], check=True)
        (ETC / "slurm.conf").write_text(self._configuration())
        (ETC / "gres.conf").write_text(
            f"NodeName=n[1-{self.nodes}] Name=gpu File={self.folder}/dev/gpu[0-{self.gpus - 1}]\n"
        )
        (ETC / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
        self._munge()
        # A daemon started inside some other job's environment would misbehave.
        plain = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")} | {"PATH": SBIN}
        subprocess.run(["slurmctld", "-i"], env=plain, check=True)
        wait(30, "slurmctld", lambda: not _run("scontrol", "ping").returncode)
        for number in range(self.nodes):
            (self.folder / "spool" / f"n{number + 1}").mkdir(exist_ok=True)
            subprocess.run(["slurmd", "-N", f"n{number + 1}"], env=plain, check=True)
        wait(
            60,
            "idle nodes",
            lambda: len(_run("sinfo", "-h", "-N", "-p", "cpu", "-t", "idle").stdout.split("\n")) > self.nodes,
        )

    def stop(self) -> None:
        """Stop what was started and put the machine's own files back."""
        _run("scancel", "--full", "-u", "root")
        for path in [
            *self.folder.glob("run/slurmd-*.pid"),
            *self.folder.glob("run/slurmctld.pid"),
            self.folder / "run/munged.pid",
        ]:
            _end(path)
        for path in [*(ETC / name for name in FILES), HOSTS]:
            kept = self.folder / "kept" / path.name
            if kept.exists():
                path.write_bytes(kept.read_bytes())
            else:
                path.unlink(missing_ok=True)

    def _munge(self) -> None:
        if not _run("munge", "-n").returncode:
            return
        for folder, mode in [
            ("/run/munge", "0755"),
            ("/var/log/munge", "0700"),
            ("/var/lib/munge", "0700"),
            ("/etc/munge", "0700"),
        ]:
            subprocess.run(["install", "-d", "-o", "munge", "-g", "munge", "-m", mode, folder], check=True)
        key = Path("/etc/munge/munge.key")
        if not key.exists() or not key.stat().st_size:
            key.write_bytes(os.urandom(1024))
        shutil.chown(key, "munge", "munge")
        key.chmod(0o400)
        subprocess.run(
            ["runuser", "-u", "munge", "--", "munged", "--force"], env={**os.environ, "PATH": SBIN}, check=True
        )
        wait(10, "munged", lambda: not _run("munge", "-n").returncode)
        shutil.copy("/run/munge/munged.pid", self.folder / "run/munged.pid")

    def _configuration(self) -> str:
        host, folder = socket.gethostname().split(".")[0], self.folder
        nodes = f"n[1-{self.nodes}]"
        return f"""ClusterName=retro
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort=16817
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,sched_min_interval=100000,bf_interval=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
MinJobAge=600
KillWait=20
CompleteWait=0
PropagateResourceLimits=NONE
GresTypes=gpu
NodeName={nodes} NodeHostname={host} NodeAddr=127.0.0.1 Port=[16820-{16819 + self.nodes}] CPUs={self.cpus} \
RealMemory={self.memory} Gres=gpu:{self.gpus} State=UNKNOWN
PartitionName=cpu Nodes={nodes} Default=YES MaxTime=24:00:00 DefMemPerCPU=256 PriorityTier=1 State=UP
PartitionName=gpu Nodes={nodes} MaxTime=24:00:00 DefMemPerCPU=256 PriorityTier=1 State=UP
PartitionName=urgent Nodes={nodes} MaxTime=24:00:00 DefMemPerCPU=256 PriorityTier=10 PreemptMode=OFF State=UP
"""


def wait(seconds: float, what: str, ready: Callable[[], object]) -> None:
    """Wait until `ready`; raises TimeoutError."""
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:.0f} s in vain for {what}")
        time.sleep(0.2)


def _run(*command: str) -> subprocess.CompletedProcess:
    return subprocess.run(command, env={**os.environ, "PATH": SBIN}, capture_output=True, text=True, timeout=20)


def _end(path: Path) -> None:
    """Stop the process of a pid file, by force after ten seconds."""
    try:
        process = int(path.read_text())
        os.kill(process, 15)
        wait(10, "its end", lambda: not Path(f"/proc/{process}").exists())
    except TimeoutError:
        os.kill(process, 9)
    except (OSError, ValueError):
        pass
