"""TorchX on plain Kubernetes: the scheduler `kubernetes_job`, and the objects that it makes of an AppDef."""
