"""What runs on the submitter: typed functions that return a TorchX AppDef, the driver that runs them, `local_docker`.

Imports TorchX, and of pipeline/ only what needs no torch; `compat` holds what is undocumented in TorchX.
"""
