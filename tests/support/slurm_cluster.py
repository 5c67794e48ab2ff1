"""A real Slurm of this machine alone: a controller, two nodes n1 and n2, with or without accounting. Needs root.

python -m tests.support.slurm_cluster /tmp/one [--accounting]      starts one that stays, and prints how to reach it
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import filelock

PACKAGES = ("slurmd", "slurmctld", "slurm-client", "munge")
ACCOUNTING = ("slurmdbd", "mariadb-server")
NODES = ("n1", "n2")
_HOSTS = Path("/etc/hosts")
_CONF = """
ClusterName={name}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={home}/munge/socket,cred_expire=10
CredType=cred/munge
StateSaveLocation={home}/state
SlurmctldPidFile={home}/slurmctld.pid
SlurmctldLogFile={home}/slurmctld.log
SlurmdPidFile={home}/%n.pid
SlurmdSpoolDir={home}/spool-%n
SlurmdLogFile={home}/%n.log
SwitchType=switch/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
JobAcctGatherType=jobacct_gather/none
JobRequeue=1
KillWait=10
MinJobAge=60
SlurmdTimeout=15
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={n1} CPUs={cpus} RealMemory=8000 Features=blue
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={n2} CPUs={cpus} RealMemory=8000
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=10
PartitionName=urgent Nodes=n1,n2 PriorityTier=9 PreemptMode=OFF
AccountingStorageType=accounting_storage/{storage}
{more}
"""


class Cluster:
    """A Slurm whose state is all in one folder.

    Args:
        home: The folder.
        accounting: Whether it keeps accounts (slurmdbd over MariaDB).
    """

    def __init__(self, home: Path, *, accounting: bool = False) -> None:
        self.home = home
        self.conf = home / "slurm.conf"
        self.environment = {"SLURM_CONF": str(self.conf)}
        self._accounting = accounting
        self._started: list[subprocess.Popen[bytes]] = []

    def up(self) -> None:
        """Start it."""
        with filelock.FileLock("/run/lock/pipeline-slurm.lock"):
            _install(PACKAGES + (ACCOUNTING if self._accounting else ()))
            _name_nodes()
        for folder in ("state", "munge", *(f"spool-{node}" for node in NODES)):
            (self.home / folder).mkdir(parents=True, exist_ok=True)
        self._configure()
        self._munge()
        if self._accounting:
            self._account()
        self._start("slurmctld", "-D", "-f", self.conf)
        for node in NODES:
            self.back(node)
        self._wait("idle nodes", lambda: self.run("sinfo", "-h", "-t", "idle", "-o", "%D").strip() == "2")

    def down(self) -> None:
        """Stop it, with the jobs that it runs."""
        with suppress(subprocess.SubprocessError):
            self.run("scancel", "--user=root", "--signal=KILL")
            self.run("scancel", "--user=root")
        for process in reversed(self._started):
            process.terminate()
        for process in self._started:
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()

    def run(self, *command: str) -> str:
        """Return what a client of this cluster prints."""
        return subprocess.run(
            command, env={**os.environ, **self.environment}, check=True, capture_output=True, text=True, timeout=60
        ).stdout

    def lose(self, node: str) -> None:
        """Let a node disappear, as a machine does whose power is cut: its daemon and all that it has started."""
        # The daemon of a step survives that of its node, whose log it writes.
        for step in _steps(self.home / f"{node}.log"):
            _kill_tree(step)
        os.kill(int((self.home / f"{node}.pid").read_text()), signal.SIGKILL)

    def back(self, node: str) -> None:
        """Start the daemon of a node."""
        self._start("slurmd", "-D", "-N", node, "-f", self.conf)

    def _configure(self) -> None:
        ports = dict(zip(("controller", *NODES, "database", "accounts"), _free_ports(5), strict=True))
        more = ""
        if self._accounting:
            more = f"AccountingStorageHost=127.0.0.1\nAccountingStoragePort={ports['accounts']}\n"
            more += f"AccountingStoragePass={self.home}/munge/socket\n"
            conf = self.home / "slurmdbd.conf"
            conf.write_text(
                f"AuthType=auth/munge\nAuthInfo=socket={self.home}/munge/socket\nDbdHost=localhost\n"
                f"DbdAddr=127.0.0.1\nDbdPort={ports['accounts']}\nSlurmUser=root\nStorageType=accounting_storage/mysql\n"
                f"StorageHost=127.0.0.1\nStoragePort={ports['database']}\nStorageUser=slurm\nStoragePass=slurm\n"
                f"StorageLoc=slurm\nLogFile={self.home}/slurmdbd.log\nPidFile={self.home}/slurmdbd.pid\n"
            )
            conf.chmod(0o600)
        self.conf.write_text(
            _CONF.format(
                name=self.home.name.replace("-", ""),
                host=socket.gethostname().partition(".")[0],
                home=self.home,
                cpus=os.cpu_count(),
                storage="slurmdbd" if self._accounting else "none",
                more=more,
                **ports,
            )
        )
        self._database_port = ports["database"]

    def _munge(self) -> None:
        folder = self.home / "munge"
        folder.chmod(0o755)
        key = folder / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        self._start(
            *("munged", "--foreground", "--force", f"--socket={folder}/socket", f"--key-file={key}"),
            *(f"--pid-file={folder}/pid", f"--log-file={folder}/log", f"--seed-file={folder}/seed"),
        )
        self._wait("munge", (folder / "socket").exists)

    def _account(self) -> None:
        data = self.home / "mysql"
        subprocess.run(
            ("mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={data}", "--skip-test-db"),
            check=True,
            capture_output=True,
        )
        sock = f"{self.home}/mysql.sock"
        self._start(
            *("mariadbd", "--no-defaults", "--user=root", f"--datadir={data}", f"--socket={sock}"),
            *("--bind-address=127.0.0.1", f"--port={self._database_port}", f"--pid-file={self.home}/mysql.pid"),
        )
        client = ("mariadb", "--no-defaults", f"--socket={sock}", "--user=root", "-e")
        self._wait("database", lambda: _succeeds(*client, "select 1"))
        sql = "create user slurm@'127.0.0.1' identified by 'slurm'; grant all on slurm.* to slurm@'127.0.0.1'"
        subprocess.run((*client, f"create database slurm; {sql}"), check=True, capture_output=True)
        self._start("slurmdbd", "-D", conf=self.home / "slurmdbd.conf")
        self._wait("accounts", lambda: bool(self.run("sacctmgr", "-n", "list", "qos")))
        for change in (
            f"cluster {self.home.name.replace('-', '')}",
            "account team",
            "user root account=team",
        ):
            with suppress(subprocess.CalledProcessError):  # it is there
                self.run("sacctmgr", "-i", "add", *change.split())

    def _start(self, *command: object, conf: Path | None = None) -> None:
        with (self.home / "daemons.log").open("ab") as log:
            self._started.append(
                subprocess.Popen(
                    [_path(str(command[0])), *map(str, command[1:])],
                    env={**os.environ, "SLURM_CONF": str(conf or self.conf)},
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )

    def _wait(self, what: str, is_true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with suppress(subprocess.SubprocessError):
                if is_true():
                    return
            time.sleep(0.2)
        raise AssertionError(f"no {what}:\n{(self.home / 'daemons.log').read_text()[-3000:]}")


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _install(packages: Sequence[str]) -> None:
    missing = [name for name in packages if not _succeeds("dpkg", "-s", name)]
    if missing:
        subprocess.run(("apt-get", "update", "-qq"), check=True)
        subprocess.run(
            ("apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing),
            check=True,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            stdout=subprocess.DEVNULL,
        )


def _name_nodes() -> None:
    missing = [node for node in NODES if node not in _HOSTS.read_text().split()]
    if missing:
        with _HOSTS.open("a") as hosts:
            hosts.write(f"127.0.0.1 {' '.join(missing)}\n")


def _path(program: str) -> str:
    found = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    assert found, f"no {program} here"
    return found


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _steps(log: Path) -> Iterator[int]:
    """The daemons of the steps that write a log."""
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError):
            step = Path(f"/proc/{pid}/cmdline").read_text().startswith("slurmstepd: [")
            if step and any(link.resolve() == log for link in Path(f"/proc/{pid}/fd").iterdir()):
                yield int(pid)


def _kill_tree(pid: int) -> None:
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    for child in children:
        _kill_tree(child)


if __name__ == "__main__":
    started = Cluster(Path(sys.argv[1]), accounting="--accounting" in sys.argv)
    started.up()
    print(f"export SLURM_CONF={started.conf}")
