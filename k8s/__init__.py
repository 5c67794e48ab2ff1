"""TorchX on plain Kubernetes: the scheduler `kubernetes_job`, and how it maps an AppDef to objects and their status.

Imports TorchX and components/, never torch; `cluster_api` alone talks to a cluster.
"""
