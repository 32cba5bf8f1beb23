"""A small Kubernetes for tests: Jobs, Pods, Nodes and friends behind a real HTTP API.

Pods run as processes of this machine, each in its own mount and UTS namespace and, where cgroups
can be created, under a real memory limit: what is killed here was killed by the kernel.
Objects look as Kubernetes 1.36 writes them; tests hold them to recordings of the real thing.
"""

from tests.doubles.kubernetes.calls import Fault
from tests.doubles.kubernetes.cluster import Cluster

__all__ = ["Cluster", "Fault"]
