"""What runs on the submitter: typed functions that return a TorchX AppDef, and the driver that runs them in order."""
